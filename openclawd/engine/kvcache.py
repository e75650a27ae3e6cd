"""Who holds which slot, and how many KV cells are promised to each.

Owns the accounting only; the cells themselves are a backend's. A sequence is promised all the cells
it can ever need before it starts, so that a started sequence never waits for room.

Invariants (`check`): every slot is free or held once; promised + free cells = all cells.
"""

from __future__ import annotations

import heapq


class KvCache:
    """`num_slots` sequences at most, sharing `num_cells` KV cells (one token each)."""

    __slots__ = ("_free_slots", "_held", "num_cells", "num_free_cells", "num_slots")

    def __init__(self, num_slots: int, num_cells: int) -> None:
        self.num_slots = num_slots
        self.num_cells = num_cells
        self.num_free_cells = num_cells
        self._free_slots = list(range(num_slots))  # a heap: the lowest slot is taken first
        self._held: dict[int, int] = {}

    def can_acquire(self, num_cells: int) -> bool:
        return bool(self._free_slots) and num_cells <= self.num_free_cells

    def acquire(self, num_cells: int) -> int:
        """The slot that now holds `num_cells`. Only after `can_acquire` said so."""
        assert self.can_acquire(num_cells)
        slot = heapq.heappop(self._free_slots)
        self._held[slot] = num_cells
        self.num_free_cells -= num_cells
        return slot

    def release(self, slot: int) -> None:
        self.num_free_cells += self._held.pop(slot)
        heapq.heappush(self._free_slots, slot)

    def held_slots(self) -> frozenset[int]:
        return frozenset(self._held)

    def check(self) -> None:
        """Raise `AssertionError` if the accounting does not add up."""
        assert sorted([*self._free_slots, *self._held]) == list(range(self.num_slots))
        assert sum(self._held.values()) + self.num_free_cells == self.num_cells
        assert self.num_free_cells >= 0
