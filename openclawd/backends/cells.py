"""Which KV cells belong to whom.

Owns the accounting of a pool of cells, one token each: a table for each owner (a slot, or the tag
of a kept prefix) of the cells at its positions, how many owners each cell has, and which are free.
What is in the cells is a backend's. Knows no ML library.

Invariant (`check`): a cell has as many owners as there are tables that name it; the others are
free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Indexes = npt.NDArray[np.int64]

_NO_CELL: Final = -1


class Cells:
    """`num_cells` of them; an owner has at most `length` positions. An owner that was never named
    has none."""

    def __init__(self, num_cells: int, length: int) -> None:
        self._length = length
        self._num_owners = np.zeros(num_cells, dtype=np.int32)
        self._free = list(range(num_cells - 1, -1, -1))  # the lowest are taken first
        self._tables: dict[int, Indexes] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def of(self, owner: int, end: int) -> Indexes:
        """The cells at positions `[0, end)`, all of which it must have. Not to be modified."""
        cells = self._table(owner)[:end]
        assert not end or cells.min() >= 0, "a sequence is computed without its beginning"
        return cells

    def take(self, owner: int, start: int, count: int) -> bool:
        """Give an owner free cells at positions `[start, start + count)`. False, and nothing has
        changed, if there are too few."""
        return self.take_at(owner, np.arange(start, start + count))

    def take_at(self, owner: int, positions: Indexes) -> bool:
        """The same at any positions."""
        count = len(positions)
        if count > len(self._free):
            return False
        if count:
            taken = self._free[: -count - 1 : -1]
            del self._free[-count:]
            self._table(owner)[positions] = taken
            self._num_owners[taken] = 1
        return True

    def share(self, source: int, target: int, start: int, end: int) -> None:
        """The cells that `source` has at positions `[start, end)` are `target`'s, too."""
        self.drop(target, start, end)
        cells = self._table(source)[start:end]
        self._table(target)[start:end] = cells
        np.add.at(self._num_owners, cells[cells >= 0], 1)

    def drop(self, owner: int, start: int = -1, end: int = -1) -> None:
        """An owner gives up its cells at positions `[start, end)`; -1 is all there are."""
        table = self._tables.get(owner)
        if table is None:
            return
        if start < 0 and end < 0:
            del self._tables[owner]
        part = table[max(start, 0) : end if end >= 0 else self._length]
        cells = part[part >= 0]
        self._num_owners[cells] -= 1
        free = cells[self._num_owners[cells] == 0]
        self._free += free[::-1].tolist()
        part[:] = _NO_CELL

    def positions(self, owner: int) -> Indexes:
        """Where it has cells, in ascending order."""
        table = self._tables.get(owner)
        return np.flatnonzero(table >= 0) if table is not None else np.empty(0, dtype=np.int64)

    def at(self, owner: int, positions: Indexes) -> Indexes:
        """The cells at positions where it has some."""
        return self._table(owner)[positions]

    def check(self) -> None:
        """Assert the invariant."""
        counted = np.zeros_like(self._num_owners)
        for table in self._tables.values():
            np.add.at(counted, table[table >= 0], 1)
        assert (counted == self._num_owners).all()
        assert sorted(self._free) == np.flatnonzero(counted == 0).tolist()

    def _table(self, owner: int) -> Indexes:
        if owner not in self._tables:
            self._tables[owner] = np.full(self._length, _NO_CELL, dtype=np.int64)
        return self._tables[owner]
