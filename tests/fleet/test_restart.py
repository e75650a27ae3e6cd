"""When a worker is started again."""

from __future__ import annotations

from openclawd.fleet.restart import (
    CRASH_BACKOFF_MAX_S,
    CRASH_WINDOW_S,
    LOAD_BACKOFF_MAX_S,
    MAX_CRASHES,
    RestartPolicy,
)


def test_a_failed_load_backs_off_from_ten_seconds_to_five_minutes() -> None:
    policy = RestartPolicy()
    delays = [policy.delay_after_failed_load_s() for _ in range(8)]
    assert delays == [10, 20, 40, 80, 160, LOAD_BACKOFF_MAX_S, LOAD_BACKOFF_MAX_S, 300]


def test_a_load_that_worked_starts_the_backoff_afresh() -> None:
    policy = RestartPolicy()
    policy.delay_after_failed_load_s()
    policy.loaded()
    assert policy.delay_after_failed_load_s() == 10


def test_the_first_crash_restarts_at_once_and_later_ones_wait_longer() -> None:
    policy = RestartPolicy()
    delays = [policy.delay_after_crash_s(now=float(second)) for second in range(MAX_CRASHES)]
    assert delays[0] == 0
    assert delays[-1] is None
    waits = [delay for delay in delays if delay is not None]
    assert waits == sorted(waits)
    assert max(waits) <= CRASH_BACKOFF_MAX_S


def test_crashes_long_ago_do_not_count() -> None:
    policy = RestartPolicy()
    for number in range(3 * MAX_CRASHES):
        assert policy.delay_after_crash_s(now=number * CRASH_WINDOW_S) == 0
    assert policy.num_recent_crashes == 1


def test_forgetting_starts_afresh() -> None:
    policy = RestartPolicy()
    for _ in range(MAX_CRASHES):
        policy.delay_after_crash_s(now=1.0)
    policy.forget()
    assert policy.delay_after_crash_s(now=1.0) == 0


def test_a_worker_that_got_something_done_is_no_crash_loop() -> None:
    policy = RestartPolicy()
    for number in range(3 * MAX_CRASHES):
        policy.got_something_done()
        assert policy.delay_after_crash_s(now=float(number)) == 0
