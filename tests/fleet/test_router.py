"""A request goes where its beginning is known and a slot is free, else where most are free."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from openclawd.fleet.router import Beginnings, Option, choose

PREFIXES = [(64, b"a"), (256, b"b"), (1024, b"c")]


def test_it_goes_to_the_worker_that_knows_most_of_its_beginning() -> None:
    options = [Option(4, 0), Option(4, 3, known_tokens=256), Option(4, 1, known_tokens=1024)]
    assert choose(options, num_sequences=1) == 2


def test_a_beginning_is_no_reason_to_wait_for_a_slot() -> None:
    options = [Option(4, 2), Option(4, 4, known_tokens=1024)]
    assert choose(options, num_sequences=1) == 0
    options = [Option(4, 1), Option(4, 3, known_tokens=1024)]
    assert choose(options, num_sequences=2) == 0


def test_without_a_known_beginning_it_goes_where_most_slots_are_free() -> None:
    assert choose([Option(8, 3), Option(4, 0), Option(8, 4)], num_sequences=1) == 0


def test_it_stays_where_it_is_prepared_if_that_is_as_good() -> None:
    assert choose([Option(4, 1), Option(4, 1, has_it=True)], num_sequences=1) == 1
    assert choose([Option(4, 0), Option(4, 1, has_it=True)], num_sequences=1) == 0


def test_before_it_is_prepared_it_goes_where_the_fewest_requests_are() -> None:
    assert choose([Option(4, 0, num_calls=9), Option(4, 0, num_calls=2)], num_sequences=0) == 1


def test_more_than_there_are_slots_is_shared_out_as_well() -> None:
    assert choose([Option(2, 5), Option(2, 4), Option(2, 6)], num_sequences=1) == 1


@given(
    st.lists(
        st.builds(
            Option,
            slots=st.integers(1, 8),
            busy=st.integers(0, 12),
            known_tokens=st.sampled_from([0, 256, 1024]),
            has_it=st.booleans(),
            num_calls=st.integers(0, 12),
        ),
        min_size=1,
    ),
    st.integers(0, 4),
)
def test_nobody_waits_for_a_slot_while_another_worker_has_one(
    options: list[Option], num_sequences: int
) -> None:
    chosen = options[choose(options, num_sequences=num_sequences)]
    if any(each.busy + num_sequences <= each.slots for each in options):
        assert chosen.busy + num_sequences <= chosen.slots


def test_the_longest_beginning_counts_and_short_ones_do_not() -> None:
    beginnings = Beginnings()
    assert beginnings.longest("alice", PREFIXES) == 0
    beginnings.note("alice", PREFIXES[:2])
    assert beginnings.longest("alice", PREFIXES) == 256
    assert beginnings.longest("alice", PREFIXES[:1]) == 0, "64 tokens are not kept by a worker"
    beginnings.note("alice", PREFIXES)
    assert beginnings.longest("alice", PREFIXES) == 1024


def test_nobody_is_sent_where_somebody_else_asked_the_same() -> None:
    beginnings = Beginnings()
    beginnings.note("alice", PREFIXES)
    assert beginnings.longest("bob", PREFIXES) == 0


def test_what_was_used_longest_ago_is_forgotten_first() -> None:
    beginnings = Beginnings(max_entries=2)
    for name in (b"1", b"2"):
        beginnings.note("", [(256, name)])
    beginnings.note("", [(256, b"1")])
    beginnings.note("", [(256, b"3")])
    assert len(beginnings) == 2
    assert [beginnings.longest("", [(256, name)]) for name in (b"1", b"2", b"3")] == [256, 0, 256]
