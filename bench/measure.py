"""What a scenario measures and how that is judged.

Owns the shapes of results and the few statistics. Knows no daemon, no model and no terminal.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Row = dict[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured, and with how many compute threads. The number of rounds is odd, so that
    a median is one of the measurements; `before_round` may wait for a calm machine, `after_round`
    note how calm it was."""

    num_rounds: int
    num_threads: int
    is_quick: bool
    before_round: Callable[[], object]
    after_round: Callable[[], object]

    def rounds(self) -> Iterator[int]:
        for number in range(self.num_rounds):
            self.before_round()
            yield number
            self.after_round()

    def pick(self, quick: int, thorough: int) -> int:
        """A number of samples or seconds."""
        return quick if self.is_quick else thorough


@dataclass(frozen=True, slots=True)
class Target:
    """A figure with its limit: `at_least` or `at_most`. `spread` is that of the rounds, if the
    figure is their median."""

    name: str
    value: float
    at_least: float | None = None
    at_most: float | None = None
    spread: str = ""

    @classmethod
    def of_rounds(
        cls,
        name: str,
        values: Sequence[float],
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> Target:
        """The median of each round's figure."""
        return cls(name, statistics.median(values), at_least, at_most, spread(values))

    @property
    def is_met(self) -> bool:
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return low <= self.value <= high

    @property
    def limit(self) -> str:
        return f"≤ {self.at_most:g}" if self.at_least is None else f"≥ {self.at_least:g}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "spread": self.spread,
            "limit": self.limit,
            "result": "PASS" if self.is_met else "MISS",
        }


@dataclass(frozen=True, slots=True)
class Plot:
    """Bars with their spread: for each series one group of samples per label, or None."""

    title: str
    unit: str
    labels: list[str]
    series: dict[str, list[Sequence[float] | None]]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Report:
    """What one scenario found. Rows are for people, `samples` hold every single measurement."""

    rows: list[Row]
    targets: list[Target] = field(default_factory=list)
    samples: dict[str, Sequence[float]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours ÷ theirs of each round. A round has both sides moments apart, so what disturbs the
    machine for longer than a round does not disturb the ratio."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(ratios(ours, theirs))


def spread(values: Sequence[float]) -> str:
    """The least and the most, for a table."""
    return f"{number(min(values))} to {number(max(values))}"


def number(value: float) -> str:
    """As many digits as say something."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: a value that was really measured."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
