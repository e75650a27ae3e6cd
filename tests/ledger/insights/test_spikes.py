"""When a day or an hour is a spike, and when it is not."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger import months

from openclawd.ledger.insights import Finding, Sample
from openclawd.ledger.insights.series import series_of
from openclawd.ledger.insights.spikes import MIN_DAYS, find_spikes

DAY = months.FIRST_DAY


def use(hour: int, tokens: int, *, requests: int = 10, principal: str = "user:a") -> Sample:
    return Sample(
        hour=hour,
        principal=principal,
        model="m",
        op="chat",
        requests=requests,
        prompt_tokens=tokens,
        cached_tokens=0,
        completion_tokens=0,
    )


def spikes_of(samples: list[Sample]) -> list[Finding]:
    return find_spikes(series_of(samples, now_hour=months.NOW_HOUR))


def steady(seed: int = 0, *, days: int = 30, sigma: float = 0.2) -> list[Sample]:
    """Two hours each day."""
    rng = random.Random(seed)
    first = DAY + 30 - days
    return [
        use((first + day) * 24 + hour, round(10_000 * rng.lognormvariate(0, sigma)), requests=50)
        for day in range(days)
        for hour in (9, 15)
    ]


def enlarged(samples: list[Sample], day: int, factor: float) -> list[Sample]:
    return [
        replace(one, prompt_tokens=round(one.prompt_tokens * factor))
        if one.hour // 24 == DAY + day
        else one
        for one in samples
    ]


def test_a_day_with_ten_times_the_tokens() -> None:
    (spike,) = spikes_of(enlarged(steady(), 16, 10))
    assert (spike.kind, spike.principal) == ("spike", "user:a")
    assert spike.numbers["start"] == "2026-03-04"
    assert 7 <= spike.numbers["ratio"] <= 14
    assert spike.numbers["false_alarms_expected"] < 0.014
    assert "2026-03-04" in spike.seen


def test_an_hour_of_many_on_a_day_that_is_none() -> None:
    rng = random.Random(3)
    samples = [
        use((DAY + day) * 24 + hour, round(10_000 * rng.lognormvariate(0, 0.2)), requests=100)
        for day in range(30)
        for hour in range(24)
    ]
    at = (DAY + 20) * 24 + 13
    samples = [
        replace(one, prompt_tokens=12 * one.prompt_tokens) if one.hour == at else one
        for one in samples
    ]
    (spike,) = spikes_of(samples)
    assert (spike.numbers["start"], spike.numbers["hours"]) == ("2026-03-08 13:00", 1)


def test_days_in_a_row_are_one_spike() -> None:
    samples = enlarged(enlarged(steady(), 16, 12), 17, 12)
    (spike,) = spikes_of(samples)
    assert spike.numbers["hours"] == 48


def test_a_job_on_every_sunday_is_no_spike() -> None:
    weekly = [use((DAY + day) * 24 + 3, 2_000_000, requests=400) for day in range(6, 30, 7)]
    assert not spikes_of(steady() + weekly)


def test_rare_jobs_are_compared_with_each_other() -> None:
    days = (1, 4, 9, 15, 22, 28)
    assert not spikes_of([use((DAY + day) * 24 + 3, 500_000) for day in days])


def test_growth_is_no_spike() -> None:
    samples = steady(days=30)
    grown = [
        replace(one, prompt_tokens=round(one.prompt_tokens * 1.06 ** (one.hour // 24 - DAY)))
        for one in samples
    ]
    assert not spikes_of(grown)


def test_a_job_that_never_varies_may_do_twice_as_much_and_not_five_times() -> None:
    same = steady(sigma=0)
    assert not spikes_of(enlarged(same, 20, 2))
    assert len(spikes_of(enlarged(same, 20, 5))) == 1


@pytest.mark.parametrize("days", [1, 2, MIN_DAYS - 1])
def test_a_few_days_tell_nothing(days: int) -> None:
    assert not spikes_of(enlarged(steady(days=days), 29, 100))


def test_one_large_request_of_few_is_no_spike() -> None:
    rng = random.Random(5)
    few = [
        use((DAY + day) * 24 + 10, round(3_000 * rng.lognormvariate(0, 1)), requests=2)
        for day in range(30)
    ]
    assert not spikes_of(enlarged(few, 12, 6))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 29), st.floats(10, 40), st.floats(1, 100))
def test_a_larger_spike_is_found_where_a_smaller_one_is(
    seed: int, day: int, factor: float, more: float
) -> None:
    samples = steady(seed)
    small, large = (spikes_of(enlarged(samples, day, f)) for f in (factor, factor * more))
    assert {one.numbers["start"] for one in small} <= {one.numbers["start"] for one in large}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 10, 1000]), st.randoms())
def test_neither_scale_nor_order_matter(seed: int, scale: int, rng: random.Random) -> None:
    samples = enlarged(steady(seed), 16, 10)
    scaled = [replace(one, prompt_tokens=scale * one.prompt_tokens) for one in samples]
    rng.shuffle(scaled)
    assert [one.numbers["start"] for one in spikes_of(scaled)] == [
        one.numbers["start"] for one in spikes_of(samples)
    ]
