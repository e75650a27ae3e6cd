"""The accounting of slots and cells."""

from __future__ import annotations

import pytest

from openclawd.engine.kvcache import KvCache


def test_slots_and_cells_come_back() -> None:
    cache = KvCache(num_slots=2, num_cells=10)
    first, second = cache.acquire(4), cache.acquire(6)
    assert (first, second) == (0, 1)
    assert cache.num_free_cells == 0
    assert cache.held_slots() == {0, 1}
    cache.check()
    cache.release(first)
    cache.check()
    assert cache.acquire(4) == 0


def test_there_is_no_room_without_a_slot_or_without_cells() -> None:
    cache = KvCache(num_slots=1, num_cells=10)
    assert not cache.can_acquire(11)
    cache.acquire(1)
    assert not cache.can_acquire(1)


def test_what_is_not_held_cannot_be_released() -> None:
    with pytest.raises(KeyError):
        KvCache(num_slots=1, num_cells=1).release(0)


def test_check_finds_a_leak() -> None:
    cache = KvCache(num_slots=1, num_cells=10)
    cache.num_free_cells -= 1
    with pytest.raises(AssertionError):
        cache.check()
