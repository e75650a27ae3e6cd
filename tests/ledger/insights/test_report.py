"""Sizes, trends and whole reports."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger import months

from openclawd.ledger.insights import ModelPeaks, ModelSize, Sample, analyse
from openclawd.ledger.insights.series import MAX_SERIES, series_of
from openclawd.ledger.insights.sizing import find_oversized, suggestion
from openclawd.ledger.insights.trends import trend_of

PEAK = ModelPeaks(model="m", days=30, slots=3, context=1500, kv_tokens=3000)
SIZE = ModelSize(model="m", parallel=16, context=8192, kv_tokens=131_072)


def test_the_suggested_values_have_a_quarter_more_than_the_peaks() -> None:
    assert suggestion(PEAK, SIZE) == {"parallel": 4, "context": 2048, "kv_tokens": 3840}


@pytest.mark.parametrize(
    "size",
    [
        ModelSize(model="m", parallel=4, context=2048, kv_tokens=8192 - 1024),
        ModelSize(model="m", parallel=7, context=4095, kv_tokens=7679),
    ],
)
def test_what_is_more_than_half_used_stays(size: ModelSize) -> None:
    assert not suggestion(PEAK, size)


def test_a_finding_says_what_to_set_and_what_that_frees() -> None:
    (found,) = find_oversized([PEAK], {"m": SIZE}, {"m": 500})
    assert found.do.startswith("set parallel: 4, context: 2048, kv_tokens: 3840")
    assert found.kv_tokens == 131_072 - 3840
    assert "whole week" not in found.do


def test_a_few_days_or_requests_are_told_as_such_or_not_at_all() -> None:
    peak = ModelPeaks(model="m", days=1, slots=3, context=1500, kv_tokens=3000)
    (found,) = find_oversized([peak], {"m": SIZE}, {"m": 20})
    assert "whole week" in found.do
    assert not find_oversized([peak], {"m": SIZE}, {"m": 19})
    assert not find_oversized([peak], {}, {"m": 500})


@given(*(st.integers(0, 10**6) for _ in range(6)))
def test_suggestions_are_between_the_peak_and_half_of_what_there_is(
    slots: int, context: int, kv: int, parallel: int, configured: int, kv_tokens: int
) -> None:
    peak = ModelPeaks(model="m", days=1, slots=slots, context=context, kv_tokens=kv)
    size = ModelSize(model="m", parallel=parallel, context=configured, kv_tokens=kv_tokens)
    used = {"parallel": slots, "context": context, "kv_tokens": kv}
    for name, value in suggestion(peak, size).items():
        assert used[name] <= value <= getattr(size, name) / 2


def daily(values: list[int]) -> list[Sample]:
    return [
        Sample(
            hour=(months.FIRST_DAY + day) * 24 + 12,
            principal="user:a",
            model="m",
            op="chat",
            requests=5,
            prompt_tokens=value,
            cached_tokens=0,
            completion_tokens=0,
            cost=value,
        )
        for day, value in enumerate(values)
    ]


def test_a_trend_goes_on_with_its_weeks() -> None:
    week = [1000, 1000, 1000, 1000, 1000, 200, 200]
    values = [week[day % 7] + 10 * day for day in range(28)]
    (series,) = series_of(daily(values), now_hour=(months.FIRST_DAY + 28) * 24)
    trend = trend_of(series)
    assert trend.change_per_week == pytest.approx(70 / 1075, rel=0.01)
    in_7, _ = trend.forecasts
    real = sum(week[day % 7] + 10 * day for day in range(28, 35))
    assert in_7.tokens == pytest.approx(real, rel=0.01)
    assert in_7.low <= in_7.tokens <= in_7.high
    assert in_7.cost == pytest.approx(in_7.tokens, rel=0.01)


def test_six_days_have_no_forecast() -> None:
    (series,) = series_of(daily([100] * 6), now_hour=(months.FIRST_DAY + 6) * 24)
    assert trend_of(series).forecasts == ()


def test_today_is_not_over_and_does_not_count() -> None:
    now_hour = (months.FIRST_DAY + 13) * 24 + 13
    (series,) = series_of(daily([100] * 14), now_hour=now_hour)
    assert series.num_whole_days == 13
    assert trend_of(series).change_per_week is None


def test_only_the_largest_series_are_looked_at() -> None:
    samples = [
        Sample(
            hour=1,
            principal=f"user:{number}",
            model="m",
            op="chat",
            requests=1,
            prompt_tokens=number + 1,
            cached_tokens=0,
            completion_tokens=0,
        )
        for number in range(MAX_SERIES + 5)
    ]
    series = series_of(samples, now_hour=2)
    assert len(series) == MAX_SERIES
    assert series[-1].total == 6


counts = st.integers(0, 10**9)
samples = st.builds(
    Sample,
    hour=st.integers(0, 24 * 60),
    principal=st.sampled_from(["a", "b"]),
    model=st.sampled_from(["m", "n"]),
    op=st.sampled_from(["chat", "embed"]),
    requests=counts,
    prompt_tokens=counts,
    cached_tokens=counts,
    completion_tokens=counts,
)


@settings(max_examples=50, deadline=None)
@given(st.lists(samples, max_size=60), st.integers(0, 24 * 70), st.randoms())
def test_any_samples_in_any_order_give_one_report(
    found: list[Sample], now_hour: int, rng: object
) -> None:
    once = analyse(found, [], [PEAK], [SIZE], now_hour=now_hour)
    shuffled = list(found)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert analyse(shuffled, [], [PEAK], [SIZE], now_hour=now_hour).as_dict() == once.as_dict()
