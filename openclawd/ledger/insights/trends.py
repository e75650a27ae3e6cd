"""Where the use of a model by a principal is going, and how much the next days will bring.

The rule: a Theil-Sen slope of daily sums over pairs of the same weekday, weekday medians, and of
what is left a mean clipped at three spreads, since medians alone would forget the busy days. A
slope whose interval contains 0 is not followed. The interval of a forecast is for 80 % and has
three parts, added as variances: days that vary, the level, and the slope, which counts the more
the further ahead one looks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Final

from openclawd.ledger.insights.robust import MEDIAN_COST, Z_80, Slope, spread, theil_sen
from openclawd.ledger.insights.series import DAYS_PER_WEEK, weekday

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openclawd.ledger.insights.series import Series

MIN_DAYS: Final = 7
"""A week is the least that shows what a week is like."""

HORIZONS_DAYS: Final = (7, 30)

_CLIP_AT: Final = 3.0
_MEDIAN_ERROR: Final = 1.2533
"""A median's standard error over a mean's, of normal values: sqrt(pi/2)."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Tokens that the next `days` will bring, with 80 % probability in [low, high]."""

    days: int
    tokens: int
    low: int
    high: int
    cost: int


@dataclass(frozen=True, slots=True)
class Trend:
    """The use of a model by a principal. `tokens_per_day` is the median of `days` whole days,
    `change_per_week` the slope as a share of it; None if it may as well be none."""

    principal: str
    model: str
    days: int
    tokens: int
    cost: int
    tokens_per_day: int
    change_per_week: float | None
    forecasts: tuple[Forecast, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "forecasts": [asdict(forecast) for forecast in self.forecasts]}


def trend_of(series: Series) -> Trend:
    """The trend of one series; without forecasts while there are too few days."""
    values = [tokens for tokens, _ in series.daily()]
    usual = median(values) if values else 0.0
    trend = Trend(
        principal=series.principal,
        model=series.model,
        days=len(values),
        tokens=series.total,
        cost=series.cost,
        tokens_per_day=round(usual),
        change_per_week=None,
    )
    if len(values) < MIN_DAYS:
        return trend
    fit = _Fit(values, first_day=series.first_day)
    price = series.cost_per_token
    return Trend(
        **{name: getattr(trend, name) for name in _MEASURED},
        change_per_week=_change(fit.slope, usual),
        forecasts=tuple(fit.forecast(days, price) for days in HORIZONS_DAYS),
    )


_MEASURED: Final = ("principal", "model", "days", "tokens", "cost", "tokens_per_day")


def _change(slope: Slope, usual: float) -> float | None:
    if not slope.is_certain or usual <= 0:
        return None
    return round(slope.value * DAYS_PER_WEEK / usual, 4)


class _Fit:
    """Daily sums as slope, weekday and rest."""

    def __init__(self, values: Sequence[int], *, first_day: int) -> None:
        self._num = len(values)
        self._first_day = first_day
        self.slope = theil_sen(values, season=DAYS_PER_WEEK)
        self._per_day = self.slope.value if self.slope.is_certain else 0.0
        rests = [value - self._per_day * day for day, value in enumerate(values)]
        self._usual = self._by_weekday(rests)
        left = [rest - self._usual[self._weekday(day)] for day, rest in enumerate(rests)]
        num_fitted = MEDIAN_COST * len(set(self._usual.values()))
        most = _CLIP_AT * spread(left, num_fitted=num_fitted).deviation
        clipped = [min(max(rest, -most), most) for rest in left] if math.isfinite(most) else left
        self._level = fmean(clipped)
        self._deviation = math.sqrt(fmean((rest - self._level) ** 2 for rest in clipped))

    def forecast(self, days: int, cost_per_token: float) -> Forecast:
        ahead = range(self._num, self._num + days)
        tokens = sum(max(0.0, self._expected(day)) for day in ahead)
        half = self._half_interval(days)
        return Forecast(
            days=days,
            tokens=round(tokens),
            low=round(max(0.0, tokens - half)),
            high=round(tokens + half),
            cost=round(tokens * cost_per_token),
        )

    def _expected(self, day: int) -> float:
        return self._usual[self._weekday(day)] + self._level + self._per_day * day

    def _half_interval(self, days: int) -> float:
        of_days = Z_80 * self._deviation * math.sqrt(days)
        of_level = Z_80 * _MEDIAN_ERROR * self._deviation * days / math.sqrt(self._num)
        distance = (self._num + days) / 2  # from the middle of the past to that of the future
        of_slope = days * distance * (self.slope.high - self.slope.low) / 2
        return math.hypot(of_days, of_level, of_slope)

    def _weekday(self, day: int) -> int:
        return weekday(self._first_day + day)

    def _by_weekday(self, rests: Sequence[float]) -> dict[int, float]:
        """The median of each weekday; of all days together while there are less than two weeks."""
        groups: dict[int, list[float]] = defaultdict(list)
        for day, rest in enumerate(rests):
            groups[self._weekday(day)].append(rest)
        if len(rests) < 2 * DAYS_PER_WEEK:
            return dict.fromkeys(range(DAYS_PER_WEEK), median(rests))
        return {day: median(members) for day, members in groups.items()}
