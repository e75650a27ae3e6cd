"""Acceptance 8: twenty months with planted cases, twenty plain ones."""

from __future__ import annotations

from collections import Counter

import pytest
from ledger import months

from openclawd.ledger.insights import Insights, analyse


def report_on(month: months.Month) -> Insights:
    return analyse(
        month.samples, month.prefixes, month.peaks, month.sizes, now_hour=months.NOW_HOUR
    )


@pytest.fixture(scope="module")
def plain() -> list[months.Month]:
    return [months.plain_month(seed) for seed in range(20)]


def test_twenty_plain_months_raise_at_most_one_false_alarm(plain: list[months.Month]) -> None:
    found = [finding for month in plain for finding in report_on(month).findings]
    assert len(found) <= 1, found


def test_twenty_months_with_planted_cases_have_them_all(plain: list[months.Month]) -> None:
    num_false = 0
    for seed, month in enumerate(plain):
        spiky, who = months.with_spike(month, seed)
        planted = months.with_large_context(months.with_repeated_prefix(spiky, seed))
        findings = report_on(planted).findings
        spikes = [one for one in findings if one.kind == "spike" and one.principal == who]
        (prefix,) = [one for one in findings if one.kind == "repeated-prefix"]
        (size,) = [one for one in findings if one.kind == "over-configured"]
        assert spikes, f"month {seed}: the spike of {who} was not found"
        assert prefix.numbers["prefix_tokens"] == 4096
        assert prefix.numbers["times_computed"] == 400
        assert prefix.tokens == 399 * 4096
        assert (size.model, size.numbers["suggested"]["context"]) == ("smollm2", 4608)
        assert size.kv_tokens >= 200_000
        num_false += len(findings) - 3
    assert num_false <= 1


def test_what_is_worth_most_comes_first(plain: list[months.Month]) -> None:
    spiky, _ = months.with_spike(plain[0], 0)
    findings = report_on(months.with_large_context(months.with_repeated_prefix(spiky, 0))).findings
    assert [one.order for one in findings] == sorted(one.order for one in findings)
    assert findings[-1].kind == "over-configured"


def test_forecasts_of_a_week_hold_for_most(plain: list[months.Month]) -> None:
    """The interval is for 80 %: of the last weeks, forecast from what came before."""
    hits: Counter[bool] = Counter()
    for month in plain[:10]:
        split = months.NOW_HOUR - 7 * 24
        past = [sample for sample in month.samples if sample.hour < split]
        for trend in analyse(past, [], [], [], now_hour=split).trends:
            if trend.principal == "user:dave":
                continue  # works on some days of a month
            week = trend.forecasts[0]
            key = (trend.principal, trend.model)
            real = sum(
                sample.tokens
                for sample in month.samples
                if sample.hour >= split and (sample.principal, sample.model) == key
            )
            hits[week.low <= real <= week.high] += 1
    assert 0.65 <= hits[True] / hits.total() <= 0.95
