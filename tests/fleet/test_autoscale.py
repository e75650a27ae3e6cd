"""A model grows soon when requests wait, and shrinks late."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from openclawd.fleet.autoscale import (
    GROW_AFTER_S,
    RETRY_AFTER_S,
    SHRINK_AFTER_S,
    Autoscaler,
    Load,
)
from openclawd.fleet.spec import Scale

SCALE = Scale(1, 3)


def load(num_workers: int, busy: int = 0, wait_s: float = 0.0, *, settled: bool = True) -> Load:
    return Load(num_workers, slots=4, busy=busy, longest_wait_s=wait_s, is_settled=settled)


def test_it_grows_when_somebody_has_waited_and_every_worker_is_there() -> None:
    scaler = Autoscaler()
    assert scaler.step(load(1, 4, GROW_AFTER_S - 0.1), SCALE, now=0) == 0
    assert scaler.step(load(1, 4, GROW_AFTER_S), SCALE, now=1) == 1
    assert scaler.step(load(2, 4, GROW_AFTER_S + 1, settled=False), SCALE, now=2) == 0
    assert scaler.step(load(2, 8, GROW_AFTER_S + 5), SCALE, now=3) == 1
    assert scaler.step(load(3, 12, GROW_AFTER_S + 9), SCALE, now=4) == 0, "three are the most"


def test_after_one_that_did_not_come_it_waits_before_the_next_try() -> None:
    scaler = Autoscaler()
    scaler.failed(10)
    assert scaler.step(load(1, 4, 60), SCALE, now=10 + RETRY_AFTER_S - 1) == 0
    assert scaler.step(load(1, 4, 60), SCALE, now=10 + RETRY_AFTER_S) == 1


def test_it_shrinks_when_one_fewer_would_have_done_for_a_while() -> None:
    scaler = Autoscaler()
    assert scaler.step(load(2, 4), SCALE, now=0) == 0
    assert scaler.step(load(2, 4), SCALE, now=SHRINK_AFTER_S - 1) == 0
    assert scaler.step(load(2, 4), SCALE, now=SHRINK_AFTER_S) == -1
    assert scaler.step(load(1), SCALE, now=10 * SHRINK_AFTER_S) == 0, "one is the least"


def test_one_busy_moment_begins_the_while_anew() -> None:
    scaler = Autoscaler()
    assert scaler.step(load(2, 4), SCALE, now=0) == 0
    assert scaler.step(load(2, 5), SCALE, now=60) == 0
    assert scaler.step(load(2, 4), SCALE, now=SHRINK_AFTER_S) == 0
    assert scaler.step(load(2, 4), SCALE, now=2 * SHRINK_AFTER_S) == -1


@given(
    st.lists(st.tuples(st.integers(0, 12), st.floats(0, 100), st.floats(0.1, 100), st.booleans()))
)
def test_it_stays_between_the_fewest_and_the_most(
    seen: list[tuple[int, float, float, bool]],
) -> None:
    scaler, num_workers, now = Autoscaler(), SCALE.low, 0.0
    for busy, wait_s, seconds, settled in seen:
        now += seconds
        num_workers += scaler.step(load(num_workers, busy, wait_s, settled=settled), SCALE, now=now)
        assert SCALE.low <= num_workers <= SCALE.high
