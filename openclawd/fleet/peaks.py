"""The most of a model that was in use at one moment, by its engine's own word after each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(slots=True)
class Peaks:
    """Sequences at once, tokens of the longest one, KV cells that they needed together."""

    slots: int = 0
    context: int = 0
    kv_tokens: int = 0

    def note(self, gauges: Mapping[str, int]) -> None:
        """One step. Called for each, so it does next to nothing. What a worker says is not
        believed to be a number before it was looked at."""
        self.slots = _greater(self.slots, gauges.get("step_slots"))
        self.context = _greater(self.context, gauges.get("step_context_tokens"))
        self.kv_tokens = _greater(self.kv_tokens, gauges.get("step_kv_tokens"))

    def take(self) -> Peaks | None:
        """What was noted since this was last called; None if that was nothing."""
        if not self.slots:
            return None
        taken = Peaks(self.slots, self.context, self.kv_tokens)
        self.slots = self.context = self.kv_tokens = 0
        return taken


_MOST = 2**53
"""More than any counter of an engine, and still an integer for everybody."""


def _greater(peak: int, value: object) -> int:
    return value if isinstance(value, int) and peak < value < _MOST else peak
