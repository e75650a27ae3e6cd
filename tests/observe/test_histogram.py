"""Durations in narrow buckets: what Prometheus is given, and percentiles of our own."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawd.observe.histogram import (
    BOUNDS,
    MAX_RELATIVE_ERROR,
    Histogram,
    Recent,
    round_bounds,
    summary,
)

DURATIONS = st.lists(st.floats(min_value=BOUNDS[0], max_value=BOUNDS[-1]), min_size=1)


def filled(durations):
    histogram = Histogram()
    for duration in durations:
        histogram.observe(duration)
    return histogram


def test_the_bounds_ascend_and_have_the_round_ones():
    assert list(BOUNDS) == sorted(set(BOUNDS))
    assert set(round_bounds(1e-4, 1e3)) <= set(BOUNDS)
    assert round_bounds(0.01, 1) == (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@given(DURATIONS)
def test_a_percentile_is_within_the_error_that_is_stated(durations):
    found = summary(filled(durations).snapshot())
    ordered = sorted(durations)
    for name, share in (("p50_s", 0.5), ("p90_s", 0.9), ("p99_s", 0.99)):
        true = ordered[max(1, math.ceil(share * len(ordered))) - 1]
        assert found[name] == pytest.approx(true, rel=MAX_RELATIVE_ERROR + 0.01, abs=1e-6)
    assert found["mean_s"] == pytest.approx(sum(durations) / len(durations), abs=1e-6)


def test_the_error_is_small():
    assert MAX_RELATIVE_ERROR < 0.053


@given(DURATIONS)
def test_prometheus_is_given_how_many_took_no_longer(durations):
    bounds = round_bounds(1e-3, 100)
    counts = filled(durations).cumulative(bounds)
    assert counts == [sum(each <= bound for each in durations) for bound in bounds] + [
        len(durations)
    ]


def test_what_is_off_the_scale_counts_at_its_ends():
    histogram = filled([-1.0, 0.0, 1e9])
    assert histogram.cumulative((BOUNDS[0], BOUNDS[-1])) == [2, 2, 3]
    assert histogram.sum_s == 1e9
    assert summary(histogram.snapshot())["p99_s"] == BOUNDS[-1]


def test_several_at_once():
    histogram = Histogram()
    histogram.observe(0.25, 4)
    assert (histogram.cumulative((0.5,)), histogram.sum_s) == ([4, 4], 1.0)


def test_nothing_has_no_percentiles():
    assert summary(Histogram().snapshot()) == {
        "count": 0,
        "mean_s": None,
        "p50_s": None,
        "p90_s": None,
        "p99_s": None,
    }


def test_the_last_minutes_alone():
    recent = Recent()
    recent.histogram.observe(100.0)
    for _ in range(3):
        recent.rotate(keep=2)
    recent.histogram.observe(0.1)
    found = recent.summaries()
    assert (found["recent"]["count"], found["all"]["count"]) == (1, 2)
    assert found["recent"]["mean_s"] == pytest.approx(0.1)
