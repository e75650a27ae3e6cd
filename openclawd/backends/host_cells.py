"""KV cells in the host's memory: those of prefixes that were taken out of the cache.

Owns the memory. It is taken in blocks, which are used again and given back at the end only: so what
a worker takes grows to its bound and stays there. What is in the cells is a backend's.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]

BLOCK_BYTES: Final = 2**14
"""Half of a block is wasted for each prefix: less than a token's cells of the smallest models."""

BLOCKS_AT_ONCE: Final = 256
"""Taken from the system, which knows only so many mappings of a process."""


def own_pages(num_bytes: int) -> Bytes:
    """Memory that the system gets back with the array. Of malloc's, what megabytes leave when they
    are freed is holes."""
    pages = mmap.mmap(-1, max(num_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, dtype=np.uint8)[:num_bytes]


class HostCells:
    """By tag. Not thread-safe: it belongs to the engine thread."""

    def __init__(self) -> None:
        self._free: list[Bytes] = []
        self._held: dict[int, list[Bytes]] = {}
        self._sizes: dict[int, int] = {}

    @property
    def num_blocks(self) -> int:
        """All that were taken."""
        return len(self._free) + sum(map(len, self._held.values()))

    def __contains__(self, tag: int) -> bool:
        return tag in self._sizes

    def put(self, tag: int, data: Bytes) -> None:
        """Keep a copy, in the place of what there was of this tag."""
        self.drop(tag)
        self._sizes[tag] = data.size
        self._held[tag] = [
            self._filled(data[start : start + BLOCK_BYTES])
            for start in range(0, data.size, BLOCK_BYTES)
        ]

    def get(self, tag: int) -> Bytes:
        """A copy."""
        size = self._sizes[tag]
        data = own_pages(size)
        for start, block in zip(range(0, size, BLOCK_BYTES), self._held[tag], strict=True):
            data[start : start + BLOCK_BYTES] = block[: size - start]
        return data

    def drop(self, tag: int) -> None:
        """Nothing happens if there is nothing."""
        self._sizes.pop(tag, None)
        self._free += self._held.pop(tag, [])

    def clear(self) -> None:
        self._free.clear()
        self._held.clear()
        self._sizes.clear()

    def _filled(self, part: Bytes) -> Bytes:
        if not self._free:
            self._free.extend(own_pages(BLOCKS_AT_ONCE * BLOCK_BYTES).reshape(-1, BLOCK_BYTES))
        block = self._free.pop()  # the one that was used last: others may have no pages yet
        block[: part.size] = part
        return block
