"""Refusals by the minute: every one is counted once, and no caller can fill the memory."""

from hypothesis import given
from hypothesis import strategies as st

from openclawd.admission.refusals import OTHERS, WINDOW_S, Refusal, Refusals


def refusal(principal="user:alice", code="denied", **changes):
    return Refusal(**{"at": 1000.0, "principal": principal, "code": code, **changes})


def test_one_count_a_minute_principal_and_code():
    refusals = Refusals(max_keys=10)
    assert refusals.due_at() is None
    refusals.note(refusal(at=1.0, operation="chat", model="m", pid=7), now=100.0)
    refusals.note(refusal(code="overloaded"), now=101.0)
    refusals.note(refusal(at=3.0, operation="load", model="m", pid=8), now=102.0)
    refusals.note(refusal("user:bob"), now=103.0)
    assert refusals.due_at() == 100.0 + WINDOW_S
    assert refusals.take(now=159.9) == []
    (alice,) = refusals.take(now=160.0)
    assert (alice.count, alice.first.pid, alice.last_at) == (2, 7, 3.0)
    assert alice.operations == {"chat": 1, "load": 1}
    assert alice.models == {"m": 2}
    assert refusals.due_at() == 161.0
    assert [each.first.principal for each in refusals.take_all()] == ["user:alice", "user:bob"]
    assert refusals.due_at() is None


def test_a_minute_begins_with_its_first_refusal():
    refusals = Refusals(max_keys=10)
    refusals.note(refusal(), now=0.0)
    refusals.take(now=60.0)
    refusals.note(refusal(), now=70.0)
    assert refusals.due_at() == 130.0


def test_made_up_models_are_counted_together():
    refusals = Refusals(max_keys=10)
    for number in range(100):
        refusals.note(refusal(model=f"m{number}"), now=0.0)
    (each,) = refusals.take_all()
    assert len(each.models) == 9
    assert each.models[OTHERS] == 92


callers = st.builds(
    refusal, st.sampled_from("abcdefgh"), st.sampled_from(["denied", "rate-limited"])
)


@given(st.lists(st.tuples(callers, st.floats(0, 100)), max_size=60), st.integers(1, 5))
def test_none_is_lost_or_counted_twice_and_the_keys_have_bounds(steps, max_keys):
    refusals = Refusals(max_keys=max_keys)
    now, taken = 0.0, []
    for each, later in steps:
        now += later
        taken += refusals.take(now=now)
        refusals.note(each, now=now)
        assert len(refusals._counts) <= max_keys + 2
    taken += refusals.take_all()
    assert sum(each.count for each in taken) == len(steps)
    for code in ("denied", "rate-limited"):
        asked = sum(each.code == code for each, _ in steps)
        assert sum(each.count for each in taken if each.first.code == code) == asked
