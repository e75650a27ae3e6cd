"""What a budget is, what a request may need of it, and what is said about it: facts only.

Amounts are whole numbers: tokens, and money in micro-units (millionths) of a currency. Pure.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from openclawctl.wire.money import format_money
from openclawd.admission.subjects import Per
from openclawd.admission.windows import local_time

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable

    from openclawd.admission.subjects import Match, Subject
    from openclawd.admission.windows import Window

WHOLE_SHARE: Final = 1000
"""Shares of a limit, as of alerts, are in thousandths."""


class Measure(enum.Enum):
    """What a budget counts in."""

    TOKENS = "tokens"
    MONEY = "money"

    def shown(self, amount: int) -> str:
        """`1200 tokens`, `0.50 of money`."""
        return f"{self.number(amount)} {'tokens' if self is Measure.TOKENS else 'of money'}"

    def number(self, amount: int) -> str:
        return str(amount) if self is Measure.TOKENS else format_money(amount)


@dataclass(frozen=True, slots=True)
class Amount:
    """Tokens (prompt and completion), and money in micro-units."""

    tokens: int = 0
    money: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.tokens + other.tokens, self.money + other.money)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.tokens - other.tokens, self.money - other.money)

    def of(self, measure: Measure) -> int:
        return self.tokens if measure is Measure.TOKENS else self.money


NOTHING: Final = Amount()


@dataclass(slots=True)  # not frozen: one is made for every request
class Need:
    """What a request may use: `worst(m)` at most, if each answer may have `m` tokens; it grows with
    `m`. `max_completion` is what the request would like, `least_completion` what it cannot do
    without; both are 0 for what has no answer (embeddings)."""

    worst: Callable[[int], Amount]
    max_completion: int
    least_completion: int

    @classmethod
    def linear(
        cls,
        prompt: Amount,
        per_completion_token: Amount,
        *,
        max_completion: int,
        least_completion: int = 1,
    ) -> Need:
        """Of a prompt, and the same for each token of the answers: `per_completion_token` is for
        one token of every choice."""

        def worst(max_completion: int) -> Amount:
            return Amount(
                prompt.tokens + max_completion * per_completion_token.tokens,
                prompt.money + max_completion * per_completion_token.money,
            )

        return cls(worst, max_completion, min(least_completion, max_completion))

    def longest_within(self, fits: Callable[[Amount], bool]) -> int:
        """The largest maximum whose worst case fits; the least does."""
        low, high = self.least_completion, self.max_completion
        if fits(self.worst(high)):  # as nearly always
            return high
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(self.worst(middle)) else (low, middle - 1)
        return low


class OnShort(enum.Enum):
    """What becomes of a request that may need more than settled usage leaves."""

    SHRINK = "shrink"
    REJECT = "reject"


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRule:
    """One budget. A limit that is None is none. `fallback` is the model that serves what this one
    cannot pay for (None: refuse); `alerts` are thousandths of a limit, ascending; `zone` is for
    showing times."""

    name: str
    match: Match
    per: Per
    tokens: int | None
    money: int | None
    window: Window
    zone: dt.tzinfo
    on_short: OnShort
    fallback: str | None
    alerts: tuple[int, ...]
    max_wait_s: float
    limits: tuple[tuple[Measure, int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        given = ((Measure.TOKENS, self.tokens), (Measure.MONEY, self.money))
        limits = tuple((measure, limit) for measure, limit in given if limit is not None)
        object.__setattr__(self, "limits", limits)

    @property
    def shape(self) -> str:
        """What counters are kept for: those of another window, or per something else, are others.
        So a changed limit counts what was used before, and a changed window begins at nothing."""
        return f"{self.window.name} per {self.per.value}"

    def concerns(self, caller: Subject) -> bool:
        """May requests of this caller count, whatever their model, application or session?"""
        known = ("principal", "group", "key", "tier")
        return type(self.match)(**{name: getattr(self.match, name) for name in known}).fits(caller)

    def owns(self, bucket: str, caller: Subject) -> bool:
        """Is a bucket of this budget the caller's own, or everybody's?"""
        match self.per:
            case Per.PRINCIPAL | Per.KEY | Per.TIER:
                return bucket == self.per.bucket(caller)
            case Per.SESSION:
                return bucket.startswith(f"{caller.principal} ")
            case _:
                return True


@dataclass(frozen=True, slots=True)
class Charge:
    """The counter that a reservation is in: a slot of a bucket of a budget. It counts until
    `ends_at` (Unix seconds; None: for ever)."""

    budget: str
    shape: str
    bucket: str
    slot: int
    ends_at: int | None


@dataclass(frozen=True, slots=True)
class Counter:
    """What the ledger has of one counter. `alerted` is the highest share that was alerted."""

    charge: Charge
    used: Amount
    alerted: int


@dataclass(frozen=True, slots=True)
class Alert:
    """A bucket has used this share (in thousandths) of its limit. `reset_at` is Unix seconds, None
    for what is never reset."""

    charge: Charge
    measure: Measure
    share: int
    used: int
    limit: int
    reset_at: int | None
    zone: dt.tzinfo

    def __str__(self) -> str:
        whose = budget_title(self.charge.budget, self.charge.bucket)
        when = "" if self.reset_at is None else f"; reset at {local_time(self.reset_at, self.zone)}"
        return (
            f"{whose} has used {self.used * 100 // max(1, self.limit)} %: "
            f"{self.measure.number(self.used)} of {self.measure.shown(self.limit)}{when}"
        )

    def as_dict(self) -> dict[str, str | int | float | None]:
        """As journal fields, and what alert commands are given."""
        return {
            "budget": self.charge.budget,
            "bucket": self.charge.bucket,
            "measure": self.measure.value,
            "share": self.share / WHOLE_SHARE,
            "used": self.used,
            "limit": self.limit,
            "reset_at": self.reset_at,
        }


def budget_title(budget: str, bucket: str) -> str:
    """`budget research`, `budget daily of user:alice`."""
    return f"budget {budget}" + (f" of {bucket}" if bucket else "")
