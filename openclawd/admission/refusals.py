"""Refusals, counted by the minute: who was refused, with which code, how often.

Whoever is refused asks again, a thousand times a second if he likes; the audit gets one row for
each minute, principal and code all the same. Owns what is counted together. Pure: `now` is the
monotonic clock's.

Invariants: every refusal is in exactly one `Refused`; no more than `max_keys` and one for each code
are kept, whatever callers do.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

WINDOW_S: Final = 60.0
OTHERS: Final = "(others)"
"""Stands for principals and models past the most that are told apart."""

_MAX_MODELS: Final = 8
"""Models that one count tells apart; a caller can make up as many names as he likes."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One request or connection that was refused before anything was prepared. `at` is Unix time.
    `operation` is empty for a connection."""

    at: float
    principal: str
    code: str
    operation: str = ""
    model: str = ""
    app: str = ""
    uid: int | None = None
    pid: int | None = None


@dataclass(slots=True)
class Refused:
    """What a minute holds of one principal and code. `first` is the first refusal of it."""

    began: float
    first: Refusal
    last_at: float
    count: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)

    def add(self, refusal: Refusal) -> None:
        self.count += 1
        self.last_at = refusal.at
        if refusal.operation:
            self.operations[refusal.operation] += 1
        if refusal.model:
            is_told = refusal.model in self.models or len(self.models) < _MAX_MODELS
            self.models[refusal.model if is_told else OTHERS] += 1


class Refusals:
    """The counts of the minutes that are not over."""

    def __init__(self, *, max_keys: int) -> None:
        self._max_keys = max_keys
        self._counts: dict[tuple[str, str], Refused] = {}

    def note(self, refusal: Refusal, *, now: float) -> None:
        """Count a refusal."""
        key = (refusal.principal, refusal.code)
        if key not in self._counts and len(self._counts) >= self._max_keys:
            key = (OTHERS, refusal.code)
            refusal = Refusal(refusal.at, OTHERS, refusal.code, refusal.operation, refusal.model)
        if key not in self._counts:
            self._counts[key] = Refused(now, refusal, refusal.at)
        self._counts[key].add(refusal)

    def due_at(self) -> float | None:
        """When the next minute is over; None: nothing is counted."""
        return min((each.began + WINDOW_S for each in self._counts.values()), default=None)

    def take(self, *, now: float) -> list[Refused]:
        """Take out what is over, in the order in which it began."""
        return self._take([k for k, each in self._counts.items() if each.began + WINDOW_S <= now])

    def take_all(self) -> list[Refused]:
        """Take out everything, at the end of the daemon."""
        return self._take(list(self._counts))

    def _take(self, keys: list[tuple[str, str]]) -> list[Refused]:
        return [self._counts.pop(key) for key in keys]
