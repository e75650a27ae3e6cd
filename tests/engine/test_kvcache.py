"""The accounting of slots, cells and kept prefixes."""

from __future__ import annotations

import pytest

from openclawd.engine.batch import CacheOp, CopyCells, DropCells, RestoreCells, StowCells
from openclawd.engine.kvcache import KvCache
from openclawd.engine.prefixes import Owner
from openclawd.engine.sequence import Sequence


def sequence(num_cells: int) -> Sequence:
    return Sequence(1, 0, [1] * (num_cells - 1), max_tokens=1)


def test_slots_and_cells_come_back() -> None:
    cache = KvCache(num_slots=2, num_cells=10)
    first, second = cache.acquire(sequence(4)), cache.acquire(sequence(6))
    assert (first, second) == (0, 1)
    assert cache.held_slots() == {0, 1}
    assert not cache.can_acquire(sequence(2))
    cache.check()
    cache.release(first)
    cache.check()
    assert cache.can_acquire(sequence(4))
    assert cache.acquire(sequence(4)) == 0


def test_there_is_no_room_without_a_slot_or_without_cells() -> None:
    cache = KvCache(num_slots=1, num_cells=10)
    assert not cache.can_acquire(sequence(11))
    cache.acquire(sequence(2))
    assert not cache.can_acquire(sequence(2))


def test_what_is_not_held_cannot_be_released() -> None:
    with pytest.raises(KeyError):
        KvCache(num_slots=1, num_cells=1).release(0)


def test_a_node_is_split_where_two_sequences_part() -> None:
    cache = KvCache(num_slots=2, num_cells=100, num_tags=4)
    for tokens in ([1, 2, 3, 4], [1, 2, 9, 9]):
        new = Sequence(1, 0, tokens, max_tokens=1)
        slot = cache.acquire(new)
        cache.take_ops()
        new.num_computed_tokens = 4
        cache.keep(slot)
        ops = cache.take_ops()
        cache.release(slot)
        cache.check()
    assert ops == [
        CopyCells(5, 4, 0, 2),  # the upper half gets a tag of its own
        DropCells(5, 0, 2),
        CopyCells(0, 3, 2, 4),
    ]
    assert cache.num_used_cells == 6


def test_what_lies_beyond_a_parting_is_nobodys_when_its_last_user_has_parted() -> None:
    cache = KvCache(num_slots=2, num_cells=100, num_tags=8, max_kept_cells=5)
    first = Sequence(1, 0, list(range(1, 11)), max_tokens=1)
    second = Sequence(2, 0, [1, 2, 3, 99, 99, 99], max_tokens=1)
    cache.acquire(first)
    first.num_computed_tokens = 10
    cache.keep(0)
    cache.acquire(second)  # uses three of the first one's ten cells
    cache.release(0)
    second.num_computed_tokens = 6
    cache.keep(1)
    cache.check()
    assert cache.num_used_cells == 6


def test_a_pinned_node_that_was_split_is_joined_again_when_tags_are_short() -> None:
    cache = KvCache(num_slots=1, num_cells=100, num_tags=4, max_kept_cells=0)

    def visit(domain: str | None, *tokens: int) -> list[CacheOp]:
        new = Sequence(1, 0, list(tokens), max_tokens=1, domain=domain)
        slot = cache.acquire(new)
        cache.take_ops()
        new.num_computed_tokens = len(tokens)
        cache.keep(slot)
        ops = cache.take_ops()
        cache.release(slot)
        cache.check()
        return ops

    visit(None, 1, 2, 3, 4)
    visit("a", 1, 2, 3, 9)  # splits the pinned node after the third token
    visit("a", 1, 9)  # and after the first
    assert visit("a", 1, 2, 9)[:2] == [CopyCells(2, 3, 0, 1), DropCells(2)]
    assert cache.is_pinned([1, 2, 3, 4])
    assert cache.num_used_cells == 4


def after_four_chats(*, max_stowed_cells: int) -> KvCache:
    cache = KvCache(num_slots=1, num_cells=100, num_tags=9, max_stowed_cells=max_stowed_cells)
    chats = [(None, [1, 2, 3, 4]), ("a", [1, 2, 3, 4, 5]), ("a", [1, 2, 9]), ("b", [7])]
    for domain, tokens in chats:
        new = Sequence(1, 0, tokens, max_tokens=1, domain=domain)
        slot = cache.acquire(new)
        new.num_computed_tokens = len(tokens)
        cache.keep(slot)
        cache.release(slot)
    return cache


def test_what_is_kept_comes_in_the_order_in_which_it_can_be_adopted() -> None:
    kept = after_four_chats(max_stowed_cells=3).kept()
    assert [(prefix.owner.domain, *prefix.tokens, -prefix.start) for prefix in kept] == [
        (None, 1, 2, 0),
        (None, 1, 2, 3, 4, -2),
        ("b", 7, 0),
        ("a", 1, 2, 9, -2),
        ("a", 1, 2, 3, 4, 5, -4),
    ]
    other = KvCache(num_slots=1, num_cells=10, num_tags=9, max_stowed_cells=1)
    assert other.adopt(Owner(None), [1, 2, 3, 4], 2) is None  # the beginning is not there
    for prefix in kept[:3]:
        assert other.adopt(prefix.owner, list(prefix.tokens), prefix.start) is not None
        other.check()
    assert other.adopt(Owner(None), [1, 2, 3, 4], 2) is None  # it is there already
    assert other.adopt(Owner("a"), [1, 2, 9], 2) is None  # no more of what nobody uses
    assert (other.num_used_cells, other.num_stowed_cells) == (4, 1)


@pytest.mark.parametrize("max_stowed_cells", [0, 1, 2, 3])
def test_no_more_outlives_a_process_than_the_next_one_has_room_for(max_stowed_cells: int) -> None:
    kept = after_four_chats(max_stowed_cells=max_stowed_cells).kept()
    assert len(kept) == 2 + max_stowed_cells  # two pinned ones, and others of one cell each


def test_of_two_that_computed_the_same_only_one_copy_stays() -> None:
    cache = KvCache(num_slots=2, num_cells=100, num_tags=4)
    twins = [Sequence(rid, 0, [1, 2, 3], max_tokens=5) for rid in (1, 2)]
    slots = [cache.acquire(twin) for twin in twins]
    for twin in twins:
        twin.num_computed_tokens = 3
    assert cache.num_used_cells == 6
    for slot in slots:
        cache.keep(slot)
        cache.check()
    assert cache.num_used_cells == 3
    assert cache.take_ops()[-2:] == [DropCells(1, 0, 3), CopyCells(5, 1, 0, 3)]


def test_check_finds_a_leak() -> None:
    cache = KvCache(num_slots=1, num_cells=10)
    cache.acquire(sequence(10))
    cache.num_cells -= 1
    with pytest.raises(AssertionError):
        cache.check()


def test_when_the_tags_run_out_the_prefix_used_longest_ago_goes() -> None:
    cache = KvCache(num_slots=1, num_cells=100, num_tags=3)

    def visit(*tokens: int) -> int:
        """Compute a prompt; how many of its tokens were kept from before."""
        new = Sequence(1, 0, list(tokens), max_tokens=1)
        slot = cache.acquire(new)
        num_kept = new.num_computed_tokens
        new.num_computed_tokens = len(tokens)
        cache.keep(slot)
        cache.release(slot)
        cache.check()
        return num_kept

    assert [visit(n, n, n) for n in (1, 2)] == [0, 0]
    assert visit(1, 1, 1) == 2
    assert visit(3, 3, 3) == 0
    assert visit(1, 1, 1) == 2
    assert visit(2, 2, 2) == 0


def test_without_tags_nothing_is_kept() -> None:
    cache = KvCache(num_slots=2, num_cells=100, num_tags=1)
    for rid in (1, 2):
        new = Sequence(rid, 0, [1, 2, 3], max_tokens=1)
        slot = cache.acquire(new)
        assert new.num_computed_tokens == 0
        new.num_computed_tokens = 3
        cache.keep(slot)
        cache.check()


# ---- prefixes in the host's memory ----


class Visits:
    """One sequence after the other computes all of its tokens, in slot 0, and leaves them kept."""

    def __init__(self, **limits: int) -> None:
        self.cache = KvCache(**{"num_slots": 2, "num_cells": 100, "num_tags": 8, **limits})

    def __call__(self, *tokens: int, domain: str = "a") -> list[CacheOp]:
        """What was done of cells, but for slots."""
        new = Sequence(1, 0, list(tokens), max_tokens=1, domain=domain)
        slot = self.cache.acquire(new)
        self.cache.make_room(len(tokens) - new.num_computed_tokens)
        new.num_computed_tokens = len(tokens)
        self.cache.keep(slot)
        self.cache.release(slot)
        self.cache.check()
        return [op for op in self.cache.take_ops() if not _is_of_slots(op)]


def _is_of_slots(op: CacheOp) -> bool:
    return isinstance(op, CopyCells) or (isinstance(op, DropCells) and op.owner < 2)


def test_prefixes_that_nobody_uses_leave_the_cache_and_come_back() -> None:
    visit = Visits(max_kept_cells=4, max_stowed_cells=8)
    assert visit(1, 1, 1, 1) == []
    assert visit(2, 2, 2, 2) == [StowCells(9)]  # the tag of the first
    assert (visit.cache.num_used_cells, visit.cache.num_stowed_cells) == (4, 4)
    assert visit(3, 3, 3, 3) == [StowCells(8)]
    assert visit(1, 1, 1, 1) == [RestoreCells(9), StowCells(7)]
    assert (visit.cache.num_used_cells, visit.cache.num_stowed_cells) == (4, 8)
    assert visit(4, 4, 4, 4) == [DropCells(8), StowCells(9)]  # the second was used least recently


def test_what_is_too_large_for_the_hosts_memory_is_forgotten_with_all_that_builds_on_it() -> None:
    visit = Visits(max_kept_cells=4, max_stowed_cells=3)
    assert visit(1, 1, 1, 1) == []
    assert visit(1, 1, 1, 1, 2, 2) == [StowCells(8)]
    assert visit(3) == [DropCells(8), DropCells(9)]
    assert visit.cache.num_stowed_cells == 0


def test_a_stowed_prefix_makes_room_for_itself() -> None:
    visit = Visits(num_cells=8, max_stowed_cells=8)
    visit(1, 1, 1, 1)
    assert visit(2, 2, 2, 2, 2, 2) == [StowCells(9)]
    assert visit(1, 1, 1, 1, 3) == [DropCells(8), RestoreCells(9)]  # not both at once


def test_a_prefix_that_builds_on_a_stowed_one_is_restored_after_it() -> None:
    visit = Visits(max_kept_cells=0, max_stowed_cells=20)
    visit(1, 1, 1, 1)
    assert visit(1, 1, 1, 1, 2, 2) == [RestoreCells(9), StowCells(8), StowCells(9)]
    ops = visit(1, 1, 1, 1, 2, 2, 3)
    assert ops[:2] == [RestoreCells(9), RestoreCells(8)]


def test_too_small_a_part_of_a_stowed_prefix_does_not_bring_it_back() -> None:
    visit = Visits(max_kept_cells=0, max_stowed_cells=100, min_kept_tokens=20)
    visit(1, *[2] * 50)
    assert visit(1, 3, 3) == []
    assert visit.cache.num_stowed_cells == 51
    assert visit(1, 2, 2, 2, 3) == [RestoreCells(9), StowCells(9)]


def test_a_stowed_prefix_is_split_where_another_parts_from_it() -> None:
    """And what builds on it stays."""
    visit = Visits(max_kept_cells=0, max_stowed_cells=200)
    visit(1, *[2] * 40)
    visit(1, *[2] * 40, 3, 3)
    assert visit(1, *[4] * 30)[0] == RestoreCells(9)
    assert visit.cache.num_stowed_cells == 43 + 30
    assert visit(1, *[2] * 40, 3, 3, 5)[-1:] == [StowCells(7)]
    assert visit.cache.num_stowed_cells == 44 + 30


def late(visit: Visits, *tokens: int) -> tuple[list[CacheOp], list[CacheOp]]:
    """A sequence that began before the same was kept and stowed keeps what it has computed: what is
    done of tags with and without a copy."""
    slow = Sequence(1, 0, list(tokens), max_tokens=1, domain="a")
    slot = visit.cache.acquire(slow)
    visit(1, 1, 1)
    visit(1, 1, 1, 1, 2, 2, 3)
    assert visit.cache.num_stowed_cells == 7
    visit.cache.take_ops()
    slow.num_computed_tokens = len(tokens)
    visit.cache.keep(slot)
    visit.cache.check()
    ops = visit.cache.take_ops()
    return [op for op in ops if _is_of_slots(op)], [op for op in ops if not _is_of_slots(op)]


def test_what_is_stowed_gets_the_cells_of_a_sequence_that_computed_the_same() -> None:
    visit = Visits(max_kept_cells=0, max_stowed_cells=20)
    copies, others = late(visit, 1, 1, 1, 1, 2, 2, 3, 4)
    assert copies[:2] == [CopyCells(0, 8, 3, 7), CopyCells(0, 9, 0, 3)]
    assert others == [DropCells(8), DropCells(9)]
    assert (visit.cache.num_used_cells, visit.cache.num_stowed_cells) == (8, 0)


def test_what_is_stowed_goes_where_a_sequence_parts_from_it_that_was_not_given_it() -> None:
    visit = Visits(max_kept_cells=0, max_stowed_cells=20)
    copies, others = late(visit, 1, 1, 1, 1, 9)
    assert copies[0] == CopyCells(0, 9, 0, 3)
    assert others == [DropCells(8), DropCells(9)]
    assert (visit.cache.num_used_cells, visit.cache.num_stowed_cells) == (5, 0)


def test_a_prefix_that_cannot_be_restored_is_forgotten_by_those_that_were_to_use_it() -> None:
    visit = Visits(num_slots=3, max_kept_cells=0, max_stowed_cells=20)
    visit(1, 1, 1, 1)
    visit(1, 1, 1, 1, 2, 2)
    tokens = [1, 1, 1, 1, 2, 2, 3], [1, 1, 5], [7, 7]
    sequences = [Sequence(1, 0, prompt, max_tokens=1, domain="a") for prompt in tokens]
    slots = [visit.cache.acquire(sequence) for sequence in sequences]
    visit.cache.take_ops()
    top, below = 10, 9
    assert visit.cache.lose(top) == slots[:2]
    assert visit.cache.lose(below) == []  # it went with the other
    assert [sequence.num_computed_tokens for sequence in sequences] == [0, 0, 0]
    dropped = [DropCells(owner) for owner in (*slots[:2], below, top)]
    assert visit.cache.take_ops() == dropped
    for slot in slots:
        visit.cache.release(slot)
    visit.cache.check()
    assert (visit.cache.num_used_cells, visit.cache.num_stowed_cells) == (0, 0)
