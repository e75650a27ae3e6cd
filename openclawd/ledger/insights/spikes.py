"""Days and hours with far more tokens than the same weekday or hour has otherwise.

The rule: logarithms of sums, since sums of heavy-tailed requests are about log-normal (Fenton 1960,
"The Sum of Log-Normal Probability Distributions"); minus a robust trend and the median of the same
weekday (or hour of a working day or weekend); over a robust spread (modified z-score, see
`robust.spread`) that is never below the noise of counting so few requests. A score counts when
Student's t exceeds it so rarely that all tests of a report together are expected to raise no more
than `FALSE_ALARMS_BY_DAY` false alarms (Bonferroni), and when there are also `MIN_RATIO` times the
tokens.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from statistics import fmean, median
from typing import TYPE_CHECKING, Final, NamedTuple

from openclawd.ledger.insights.robust import (
    MEDIAN_COST,
    Spread,
    spread,
    student_t_tail,
    theil_sen,
)
from openclawd.ledger.insights.samples import Finding
from openclawd.ledger.insights.series import DAY_H, DAYS_PER_WEEK, is_weekend, weekday

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from openclawd.ledger.insights.series import Series

FALSE_ALARMS_BY_DAY: Final = 0.03
FALSE_ALARMS_BY_HOUR: Final = 0.005
"""Expected false alarms of a whole report, at most, if sums were log-normal. Sums of generated
months with bounded requests stay well below: of 300 plain ones, none had a day that would count at
0.03 and two one at 0.05, none an hour that would count at 0.5 (measured 2026-11-29, before a
later change of the rules; not repeated since)."""

MIN_RATIO: Final = 3.0
"""What is less than three times the usual is nobody's business at 3 a.m., however certain it is."""

MIN_DAYS: Final = 21
"""With less than three weeks nobody knows what comes every week."""

LEAST_SPREAD: Final = 0.1
"""Days that are alike to a tenth are called alike: a job that computes exactly the same each day
must not raise an alarm when it computes 1 % more."""

PRIOR_SPREAD: Final = 0.35
PRIOR_DEGREES: Final = 8.0
"""A month of days says little about how much they vary, so that is taken together with what
principals vary in general: a factor of 1.4, as if that had been seen on eight days more (moderated
t, G. K. Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3)."""

COUNT_NOISE: Final = 3.0
"""The variance of a sum of n independent requests, over its squared mean, is (1 + cv²) / n. Sizes
of requests have a squared coefficient of variation of about 2 (log-normal with sigma 1: 1.7)."""

BUSY_SHARE: Final = 0.25
"""A weekday (or hour) is busy that has so large a share of the requests of the busiest one."""

MAX_HOURLY_DEGREES: Final = 12.0
"""Hours come in bursts, so their tails are heavier than normal, however many of them there are."""


class Value(NamedTuple):
    """Tokens and requests of one day or hour, and which others it is compared with: those of its
    group, and of its family as far as the groups of a family are alike."""

    position: int
    tokens: int
    requests: int
    group: int
    family: int


@dataclass(frozen=True, slots=True)
class Excess:
    """A value above what was expected, and how likely one is that is as far above it."""

    position: int
    tokens: int
    expected: float
    probability: float


@dataclass(frozen=True, slots=True)
class Spike:
    """`num` days or hours in a row, from `start` on (days or hours since 1970)."""

    series: Series
    unit_h: int
    start: int
    num: int
    tokens: int
    expected: float
    probability: float

    @property
    def ratio(self) -> float:
        return self.tokens / max(1.0, self.expected)

    @property
    def days(self) -> range:
        first = self.start * self.unit_h // DAY_H
        return range(first, ((self.start + self.num) * self.unit_h - 1) // DAY_H + 1)


def find_spikes(series: Sequence[Series]) -> list[Finding]:
    """The spikes of all series, those of hours only on days that are not spikes as a whole."""
    days = [(one, excesses(_days(one))) for one in series]
    hours = [(one, excesses(_hours(one), max_degrees=MAX_HOURLY_DEGREES)) for one in series]
    num_days, num_hours = (max(1, sum(len(found) for _, found in all_)) for all_ in (days, hours))
    findings = []
    for (one, by_day), (_, by_hour) in zip(days, hours, strict=True):
        daily = _merged(one, DAY_H, by_day, FALSE_ALARMS_BY_DAY / num_days)
        taken = {day for spike in daily for day in spike.days}
        hourly = _merged(one, 1, by_hour, FALSE_ALARMS_BY_HOUR / num_hours)
        hourly = [spike for spike in hourly if not taken.intersection(spike.days)]
        findings += [_finding(spike, num_days) for spike in daily]
        findings += [_finding(spike, num_hours) for spike in hourly]
    return findings


def excesses(values: Sequence[Value], *, max_degrees: float = math.inf) -> list[Excess]:
    """Each value with the probability of one that high; none if there are too few to tell.

    Where fewer than half have any tokens, those are compared among themselves: rare jobs are no
    spikes for not running every day.
    """
    active = [value for value in values if value.tokens > 0]
    if _is_mostly_idle(values):
        values = active
    if len(values) < MIN_DAYS:
        return []
    fit = _Fit(values, one_request=median(one.tokens / max(1, one.requests) for one in active))
    degrees = min(fit.spread.degrees, max_degrees)
    return [
        Excess(
            value.position,
            value.tokens,
            fit.expected(at),
            student_t_tail(fit.score(at), degrees),
        )
        for at, value in enumerate(values)
    ]


class _Fit:
    """Logarithms of values as a trend, the median of their group, and the rest. `one_request` keeps
    them finite: a value of nothing counts as one request."""

    def __init__(self, values: Sequence[Value], *, one_request: float) -> None:
        self._values = values
        self._one_request = one_request
        logs = [math.log(value.tokens + one_request) for value in values]
        self._slope = theil_sen(logs, season=DAYS_PER_WEEK).value if _are_days(values) else 0.0
        self._rests = [log - self._slope * at for at, log in enumerate(logs)]
        requests = [float(value.requests) for value in values]
        self._requests = _medians(values, requests)
        self._busiest = max(self._requests.values())
        self._usual = _medians(values, self._rests)
        self.spread = self._spread(num_fitted=MEDIAN_COST * len(self._usual))
        self._draw_together()
        self.spread = _moderated(self.spread)

    def _draw_together(self) -> None:
        """Medians of four or five values are noisy: those of a family's groups are drawn to the
        family's median, the more the less they differ beyond that noise (James and Stein 1961).
        Groups that do differ, as when a job runs each Sunday, stay where they are."""
        members: dict[int, dict[int, int]] = defaultdict(Counter)
        for value in self._values:
            members[value.family][value.group] += 1
        centres = _medians([one._replace(group=one.family) for one in self._values], self._rests)
        noise = MEDIAN_COST * self.spread.deviation**2
        num_fitted = 0.0
        for family, sizes in members.items():
            apart = {group: self._usual[group] - centres[family] for group in sizes}
            share = _share_kept(apart.values(), noise * len(sizes) / sum(sizes.values()))
            num_fitted += 1 + share * (len(sizes) - 1)
            for group, distance in apart.items():
                self._usual[group] = centres[family] + share * distance
        self.spread = self._spread(num_fitted=MEDIAN_COST * num_fitted)

    def _residual(self, at: int) -> float:
        return self._rests[at] - self._usual[self._values[at].group]

    def _spread(self, *, num_fitted: float) -> Spread:
        """Of the busy groups: what the quiet ones vary is for the most part the noise of counting,
        and would hide a spike on a busy day."""
        busy = {
            group
            for group, requests in self._requests.items()
            if requests >= BUSY_SHARE * self._busiest
        }
        values = enumerate(self._values)
        residuals = [self._residual(at) for at, value in values if value.group in busy]
        share = len(busy) / len(self._requests)
        return spread(residuals, num_fitted=num_fitted * share + _are_days(self._values))

    def expected(self, at: int) -> float:
        usual = self._usual[self._values[at].group] + self._slope * at
        return max(0.0, math.exp(usual) - self._one_request)

    def score(self, at: int) -> float:
        """How far a value is above what is expected, in standard deviations."""
        noise = _count_noise(self._requests[self._values[at].group])
        least = LEAST_SPREAD**2 + noise
        variance = self.spread.deviation**2 + noise - _count_noise(self._busiest)
        return self._residual(at) / math.sqrt(max(least, variance))


def _share_kept(apart: Iterable[float], noise: float) -> float:
    """Of the distances of groups from their family, given the variance that chance gives them."""
    variance = fmean(distance**2 for distance in apart)
    return max(0.0, 1 - noise / variance) if 0 < noise < math.inf and variance > 0 else 1.0


def _moderated(measured: Spread) -> Spread:
    if not math.isfinite(measured.deviation):
        return measured
    degrees = measured.degrees + PRIOR_DEGREES
    squares = measured.degrees * measured.deviation**2 + PRIOR_DEGREES * PRIOR_SPREAD**2
    return Spread(math.sqrt(squares / degrees), degrees)


def _count_noise(requests: float) -> float:
    """The variance of the logarithm of a sum of about so many requests."""
    return COUNT_NOISE / (requests + 1)


def _are_days(values: Sequence[Value]) -> bool:
    """Every day is there. Hours have no trend: a month's is small beside what an hour varies; nor
    have days with gaps."""
    is_whole = values[-1].position - values[0].position == len(values) - 1
    return is_whole and len({value.group for value in values}) <= DAYS_PER_WEEK


def _medians(values: Sequence[Value], numbers: Sequence[float]) -> dict[int, float]:
    groups: dict[int, list[float]] = defaultdict(list)
    for value, number in zip(values, numbers, strict=True):
        groups[value.group].append(number)
    return {group: median(members) for group, members in groups.items()}


def _days(series: Series) -> list[Value]:
    """Grouped by weekday, those of working days and weekends in a family each."""
    return [
        Value(day, tokens, requests, weekday(day), int(is_weekend(day)))
        for day, (tokens, requests) in enumerate(series.daily(), series.first_day)
    ]


def _hours(series: Series) -> list[Value]:
    """Grouped by the hour of a week; the same hour of all working days is a family. Only of those
    who are there most hours: others, such as people at work, are judged by days."""
    if series.num_whole_days < MIN_DAYS:
        return []
    values = []
    for hour, (tokens, requests) in enumerate(series.hourly(), series.first_day * DAY_H):
        day, of_day = divmod(hour, DAY_H)
        family = of_day + DAY_H * is_weekend(day)
        values.append(Value(hour, tokens, requests, weekday(day) * DAY_H + of_day, family))
    return [] if _is_mostly_idle(values) else values


def _is_mostly_idle(values: Sequence[Value]) -> bool:
    return 2 * sum(value.tokens > 0 for value in values) < len(values)


def _merged(series: Series, unit_h: int, found: list[Excess], least: float) -> list[Spike]:
    """Those that count; neighbours are one spike."""
    spikes: list[Spike] = []
    for excess in found:
        if excess.probability > least or excess.tokens < MIN_RATIO * excess.expected:
            continue
        new = Spike(
            series, unit_h, excess.position, 1, excess.tokens, excess.expected, excess.probability
        )
        last = spikes[-1] if spikes else None
        if last is not None and last.start + last.num == new.start:
            spikes[-1] = replace(
                last,
                num=last.num + 1,
                tokens=last.tokens + new.tokens,
                expected=last.expected + new.expected,
                probability=min(last.probability, new.probability),
            )
        else:
            spikes.append(new)
    return spikes


def _finding(spike: Spike, num_tests: int) -> Finding:
    series = spike.series
    excess = round(spike.tokens - spike.expected)
    when, length = _when(spike)
    return Finding(
        kind="spike",
        model=series.model,
        principal=series.principal,
        seen=f"{when}: {spike.tokens:,} tokens{length}, {spike.ratio:.1f} times the usual"
        f" {round(spike.expected):,}",
        do="see who asked for what: `openclawctl usage --by app`; a rate limit or budget for this"
        " principal would have stopped it",
        tokens=excess,
        cost=round(excess * series.cost_per_token),
        numbers={
            "start": when,
            "hours": spike.num * spike.unit_h,
            "tokens": spike.tokens,
            "expected_tokens": round(spike.expected),
            "ratio": round(spike.ratio, 2),
            "false_alarms_expected": spike.probability * num_tests,
        },
    )


def _when(spike: Spike) -> tuple[str, str]:
    start = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(hours=spike.start * spike.unit_h)
    if spike.unit_h == DAY_H:
        return f"{start:%Y-%m-%d}", "" if spike.num == 1 else f" in {spike.num} days"
    return f"{start:%Y-%m-%d %H:%M}", f" in {spike.num} h"
