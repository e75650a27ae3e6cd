"""Statistics that a few wild values cannot bend. Pure arithmetic on lists of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

MAD_TO_SIGMA: Final = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation, 1/Phi⁻¹(3/4)."""

MEAN_AD_TO_SIGMA: Final = 1.2533
"""The same for the mean absolute deviation, sqrt(pi/2), which Iglewicz and Hoaglin take instead
when more than half of the values are equal and the MAD is 0."""

QN_TO_SIGMA: Final = 2.2219
"""A normal distribution's standard deviation over its Qn (Rousseeuw and Croux 1993)."""

MAD_EFFICIENCY: Final = 0.37
QN_EFFICIENCY: Final = 0.82
"""A MAD of n normal values is as certain as a standard deviation of 0.37 n of them, a Qn as one of
0.82 n. (Both: P. J. Rousseeuw and C. Croux 1993, "Alternatives to the Median Absolute Deviation",
JASA 88.)"""

MEDIAN_COST: Final = math.pi / 2
"""A median is as certain as a mean of 2/pi of its values, so fitting one takes away as much of the
spread of residuals as fitting pi/2 means (simulated 2026-11-29: 30 values and 7 medians give a
deviation of 1.02 instead of 1)."""

MAX_QN_VALUES: Final = 150
"""Qn looks at every pair; beyond, the MAD of so many values is certain enough."""

Z_80: Final = 1.2816
"""A normal value lies within so many standard deviations with a probability of 80 %."""

_MAX_PAIRS: Final = 20_000
_MAX_FRACTION_STEPS: Final = 300


@dataclass(frozen=True, slots=True)
class Spread:
    """A robust standard deviation. `degrees` of freedom belong to scores that are made with it:
    such a score is compared with Student's t, since the deviation itself is uncertain."""

    deviation: float
    degrees: float


def spread(residuals: Sequence[float], *, num_fitted: float) -> Spread:
    """The spread of residuals of a fit with so many parameters (a median is `MEDIAN_COST` of them).
    They lie closer to the fit than new values would, by the square root of what is left of n.

    Up to a third of the values may be anything: Qn, the first quartile of all distances between
    two values; of more than `MAX_QN_VALUES`, the median absolute deviation. Where more than half
    are equal, the mean absolute deviation, as Iglewicz and Hoaglin do.
    """
    num_free = len(residuals) - num_fitted
    if num_free < 1:
        return Spread(math.inf, 1.0)
    is_short = len(residuals) <= MAX_QN_VALUES
    scale = _qn(residuals) if is_short else _mad(residuals)
    if scale == 0:
        centre = median(residuals)
        scale = MEAN_AD_TO_SIGMA * fmean(abs(value - centre) for value in residuals)
    efficiency = QN_EFFICIENCY if is_short else MAD_EFFICIENCY
    inflated = scale * math.sqrt(len(residuals) / num_free)
    return Spread(inflated, max(1.0, efficiency * num_free))


def _mad(values: Sequence[float]) -> float:
    """B. Iglewicz and D. C. Hoaglin 1993, "How to Detect and Handle Outliers", ASQC."""
    centre = median(values)
    return MAD_TO_SIGMA * median(abs(value - centre) for value in values)


def _qn(values: Sequence[float]) -> float:
    half = len(values) // 2 + 1
    distances = sorted(
        abs(first - second) for at, first in enumerate(values) for second in values[at + 1 :]
    )
    rank = half * (half - 1) // 2
    few = (
        1.4 if len(values) % 2 else 3.8
    )  # Qn of few values is too large (Croux and Rousseeuw 1992)
    scale = QN_TO_SIGMA * len(values) / (len(values) + few)
    return scale * distances[rank - 1] if 0 < rank <= len(distances) else 0.0


@dataclass(frozen=True, slots=True)
class Slope:
    """Per step, with the 80 % confidence interval [low, high]."""

    value: float
    low: float
    high: float

    @property
    def is_certain(self) -> bool:
        """Does the interval exclude 0?"""
        return self.low > 0 or self.high < 0


def theil_sen(values: Sequence[float], *, season: int) -> Slope:
    """The median slope of a series with one value a step (P. K. Sen 1968, "Estimates of the
    Regression Coefficient Based on Kendall's Tau", JASA 63), over pairs that lie whole seasons
    apart, so that a weekly pattern is no trend (Hirsch, Slack and Smith 1982, Water Resources
    Research 18). A series of less than two seasons is taken as one without any.

    The interval is Sen's, from the variance of Kendall's S (Gilbert 1987, 16.4.2 and 17.3).
    """
    if len(values) < 2 * season:
        season = 1
    phases = [values[phase::season] for phase in range(season)]
    slopes = sorted(slope for phase in phases for slope in _pair_slopes(phase, step=season))
    if not slopes:
        return Slope(0.0, 0.0, 0.0)
    variance = sum(n * (n - 1) * (2 * n + 5) / 18 for n in map(len, phases))
    share = len(slopes) / max(1, sum(n * (n - 1) // 2 for n in map(len, phases)))
    half = Z_80 * math.sqrt(variance) * share / 2
    middle = (len(slopes) - 1) / 2
    low, high = (min(max(round(middle + k), 0), len(slopes) - 1) for k in (-half, half))
    return Slope(median(slopes), slopes[low], slopes[high])


def _pair_slopes(values: Sequence[float], *, step: int) -> list[float]:
    """Of every pair; of long series, of those a number of steps apart that leaves `_MAX_PAIRS`."""
    num = len(values)
    stride = max(1, num * num // 2 // _MAX_PAIRS)
    return [
        (values[later] - values[earlier]) / ((later - earlier) * step)
        for earlier in range(num)
        for later in range(earlier + 1, num, stride)
    ]


def student_t_tail(t: float, degrees: float) -> float:
    """The probability that Student's t exceeds `t`; 0.5 for anything below 0, which no caller
    asks."""
    if t <= 0:
        return 0.5
    return 0.5 * _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised I_x(a, b) by its continued fraction (DLMF 8.17.22), which converges quickly
    for x < (a + 1) / (a + b + 2); beyond that by symmetry."""
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    log_front = a * math.log(x) + b * math.log1p(-x)
    log_front += math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return math.exp(log_front) / (a * _beta_fraction(a, b, x))


def _beta_fraction(a: float, b: float, x: float) -> float:
    """1 + d1/(1 + d2/(1 + …)) by Lentz's method, to double precision."""
    tiny = 1e-300
    value, c, d = 1.0, 1.0, 0.0
    for n in range(1, _MAX_FRACTION_STEPS):
        m = n // 2
        if n % 2 == 0:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / ((1 + term * d) or tiny)
        c = (1 + term / c) or tiny
        value *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return value
