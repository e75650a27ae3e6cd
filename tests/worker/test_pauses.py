"""How long until the next pause of what is computed aside."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from openclawd.worker.pauses import Pauses

DURATIONS = st.lists(st.integers(1, 1000), min_size=2, max_size=60)


def compute(pauses: Pauses, durations: list[int]) -> list[float]:
    """What was foreseen at each pause but the last. In each pause others take some time."""
    foreseen = []
    now_s = 0
    pauses.begin()
    pauses.reached(now_s)
    for duration in durations:
        now_s += 7
        pauses.left(now_s)
        now_s += duration
        foreseen.append(pauses.reached(now_s))
    return foreseen


@given(DURATIONS)
def test_a_part_is_foreseen_from_the_one_before(durations: list[int]) -> None:
    pauses = Pauses()
    compute(pauses, durations)
    assert compute(pauses, durations)[:-1] == durations[1:]


@given(DURATIONS, st.integers(1, 59))
def test_after_a_part_that_was_cut_the_longest_so_far_is_expected(
    durations: list[int], end: int
) -> None:
    pauses, end = Pauses(), min(end, len(durations))
    compute(pauses, durations[:end])
    foreseen = compute(pauses, durations)
    assert foreseen[end - 1 :] == [
        max(durations[max(0, position - 24) : position])
        for position in range(end, len(durations) + 1)
    ]


def test_the_first_part_expects_nothing_before_its_first_pauses() -> None:
    pauses = Pauses()
    pauses.begin()
    assert pauses.reached(1.0) == 0.0
    pauses.left(2.0)
    assert pauses.reached(5.0) == 3.0
