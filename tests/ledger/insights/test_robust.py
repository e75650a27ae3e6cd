"""The statistics against known values, and on anything."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawd.ledger.insights.robust import MAX_QN_VALUES, spread, student_t_tail, theil_sen

numbers = st.lists(st.floats(-1e6, 1e6), max_size=40)


@pytest.mark.parametrize(
    ("t", "degrees", "probability"),
    [
        (1.0, 1, 0.25),
        (2.0, 2, 0.0917517095),
        (12.706204736, 1, 0.025),
        (2.228138852, 10, 0.025),
        (4.143700494, 10, 0.001),
        (3.385184866, 30, 0.001),
        (1.644853627, 1e7, 0.05),
    ],
)
def test_students_t(t: float, degrees: float, probability: float) -> None:
    """The values of tables (NIST/SEMATECH e-Handbook 1.3.6.7.2)."""
    assert student_t_tail(t, degrees) == pytest.approx(probability, rel=2e-3)


@given(st.floats(0, 100), st.floats(1, 1000))
def test_a_tail_is_a_probability_and_falls(t: float, degrees: float) -> None:
    assert 0 <= student_t_tail(t + 1, degrees) <= student_t_tail(t, degrees) <= 0.5


@pytest.mark.parametrize("num", [30, MAX_QN_VALUES + 1])
def test_the_spread_of_normal_values_is_their_deviation(num: int) -> None:
    rng = random.Random(num)
    deviations = [
        spread([rng.gauss(5, 2) for _ in range(num)], num_fitted=0).deviation for _ in range(200)
    ]
    assert sum(deviations) / len(deviations) == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("num", [30, MAX_QN_VALUES + 1])
def test_wild_values_do_not_bend_it(num: int) -> None:
    rng = random.Random(num)
    values = [rng.gauss(0, 1) for _ in range(num)]
    tame = spread(values, num_fitted=0).deviation
    values[: num // 10] = [1e9] * (num // 10)
    assert spread(values, num_fitted=0).deviation < 1.5 * tame


def test_equal_values_have_no_spread_and_one_other_gives_some() -> None:
    assert spread([1.0] * 20, num_fitted=0).deviation == 0
    assert spread([1.0] * 19 + [2.0], num_fitted=0).deviation > 0


def test_more_parameters_than_values_tell_nothing() -> None:
    assert math.isinf(spread([1.0, 2.0], num_fitted=2).deviation)


@given(numbers, st.floats(0.01, 100))
def test_the_spread_scales(values: list[float], factor: float) -> None:
    one, other = (
        spread([scale * value for value in values], num_fitted=1).deviation
        for scale in (1.0, factor)
    )
    if math.isfinite(one):
        assert other == pytest.approx(factor * one, rel=1e-6, abs=1e-6)


def test_a_slope_among_wild_values_and_weeks() -> None:
    week = [0, 500, 300, 200, 100, -400, -400]
    values = [3.0 * day + week[day % 7] for day in range(35)]
    values[10] = 1e9
    slope = theil_sen(values, season=7)
    assert slope.value == pytest.approx(3)
    assert slope.low <= slope.value <= slope.high
    assert slope.is_certain


def test_noise_has_no_certain_slope_in_most_cases() -> None:
    rng = random.Random(1)
    certain = sum(
        theil_sen([rng.gauss(0, 1) for _ in range(30)], season=7).is_certain for _ in range(200)
    )
    assert 0.08 <= certain / 200 <= 0.35  # 20 % are expected


@given(numbers, st.integers(1, 10))
def test_any_values_have_a_slope(values: list[float], season: int) -> None:
    slope = theil_sen(values, season=season)
    assert slope.low <= slope.value <= slope.high


def test_long_series_are_sampled() -> None:
    assert theil_sen([2.0 * day for day in range(2000)], season=1).value == pytest.approx(2)
