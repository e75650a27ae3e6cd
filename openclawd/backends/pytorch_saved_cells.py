"""KV cells outside the pool: as bytes, for the host's memory or a file.

Owns the format: what the cells are like (a fingerprint of the pool), how many, their positions, and
the rows of each layer, one layer after the other.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from openclawd.backends.host_cells import own_pages

if TYPE_CHECKING:
    import numpy.typing as npt

    from openclawd.backends.host_cells import Bytes
    from openclawd.backends.pytorch_attention import KvPool

_HEADER: Final = struct.Struct("<16sQ")


@dataclass(frozen=True, slots=True)
class SavedCells:
    """`positions` ascend; `rows` are the bytes of the layers of `pool` at these."""

    pool: KvPool
    positions: npt.NDArray[np.int64]
    rows: dict[int, Bytes]

    def write(self, cells: npt.NDArray[np.int64]) -> None:
        """Put them into these cells of the pool."""
        index = torch.from_numpy(cells).to(self.pool.device)
        with torch.inference_mode():  # the pool was made in it
            for layer, raw in self.rows.items():
                own = self.pool.rows[layer]
                rows = torch.from_numpy(raw.copy()).view(own.dtype).view(-1, own.shape[1])
                own.index_copy_(0, index, rows.to(self.pool.device))


def to_bytes(pool: KvPool, positions: npt.NDArray[np.int64], cells: npt.NDArray[np.int64]) -> Bytes:
    """The contents of the cells of a sequence, which stand at these positions. Blocks."""
    index = torch.from_numpy(cells).to(pool.device)
    count = len(positions)
    start = _HEADER.size + positions.nbytes
    data = own_pages(start + sum(_sizes(pool, count).values()))
    _HEADER.pack_into(data.data, 0, _fingerprint(pool), count)
    data[_HEADER.size : start] = positions.view(np.uint8)
    for layer, size in _sizes(pool, count).items():
        rows = pool.rows[layer].index_select(0, index).cpu()
        data[start : start + size] = rows.view(torch.uint8).numpy().reshape(-1)
        start += size
    return data


def from_bytes(pool: KvPool, data: Bytes, *, length: int) -> SavedCells | None:
    """What `to_bytes` gave for a sequence of at most `length` tokens. None if it is cut, or from a
    pool of other sizes."""
    if len(data) < _HEADER.size:
        return None
    fingerprint, count = _HEADER.unpack_from(data.data)
    sizes = _sizes(pool, count)
    start = _HEADER.size + 8 * count
    if fingerprint != _fingerprint(pool) or len(data) != start + sum(sizes.values()):
        return None
    positions = np.frombuffer(data, dtype=np.int64, count=count, offset=_HEADER.size)
    ascends = (np.diff(positions) > 0).all()
    if count and not (ascends and positions[0] >= 0 and positions[-1] < length):
        return None
    found = {}
    for layer, size in sizes.items():
        found[layer] = data[start : start + size]
        start += size
    return SavedCells(pool, positions, found)


def _sizes(pool: KvPool, count: int) -> dict[int, int]:
    """Bytes of so many cells in each layer."""
    rows_of = sorted(pool.rows.items())
    return {layer: int(count * rows.shape[1] * rows.element_size()) for layer, rows in rows_of}


def _fingerprint(pool: KvPool) -> bytes:
    layers = [(layer, rows.shape[1], str(rows.dtype)) for layer, rows in sorted(pool.rows.items())]
    return hashlib.sha256(repr(layers).encode()).digest()[:16]
