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

if TYPE_CHECKING:
    import numpy.typing as npt

    from openclawd.backends.pytorch_attention import KvPool

_HEADER: Final = struct.Struct("<16sQ")


@dataclass(frozen=True, slots=True)
class SavedCells:
    """`positions` ascend; `rows` are those of the layers of `pool` at these."""

    pool: KvPool
    positions: npt.NDArray[np.int64]
    rows: dict[int, torch.Tensor]

    def write(self, cells: npt.NDArray[np.int64]) -> None:
        """Put them into these cells of the pool."""
        index = torch.from_numpy(cells).to(self.pool.device)
        with torch.inference_mode():  # the pool was made in it
            for layer, rows in self.rows.items():
                self.pool.rows[layer].index_copy_(0, index, rows.to(self.pool.device))


def to_bytes(pool: KvPool, positions: npt.NDArray[np.int64], cells: npt.NDArray[np.int64]) -> bytes:
    """The contents of the cells of a sequence, which stand at these positions. Blocks."""
    index = torch.from_numpy(cells).to(pool.device)
    layers = (pool.rows[layer].index_select(0, index).cpu() for layer in sorted(pool.rows))
    parts = [_HEADER.pack(_fingerprint(pool), len(positions)), positions.tobytes()]
    parts += [rows.view(torch.uint8).numpy().tobytes() for rows in layers]
    return b"".join(parts)


def from_bytes(pool: KvPool, data: bytes, *, length: int) -> SavedCells | None:
    """What `to_bytes` gave for a sequence of at most `length` tokens. None if it is cut, or from a
    pool of other sizes."""
    if len(data) < _HEADER.size:
        return None
    fingerprint, count = _HEADER.unpack_from(data)
    sizes = {layer: count * _row_bytes(rows) for layer, rows in sorted(pool.rows.items())}
    start = _HEADER.size + 8 * count
    if fingerprint != _fingerprint(pool) or len(data) != start + sum(sizes.values()):
        return None
    positions = np.frombuffer(data, dtype=np.int64, count=count, offset=_HEADER.size)
    ascends = (np.diff(positions) > 0).all()
    if count and not (ascends and positions[0] >= 0 and positions[-1] < length):
        return None
    found = {}
    for layer, size in sizes.items():
        rows = pool.rows[layer]
        raw = torch.frombuffer(bytearray(data[start : start + size]), dtype=torch.uint8)
        found[layer] = raw.view(rows.dtype).view(count, rows.shape[1])
        start += size
    return SavedCells(pool, positions, found)


def _row_bytes(rows: torch.Tensor) -> int:
    return int(rows.shape[1] * rows.element_size())


def _fingerprint(pool: KvPool) -> bytes:
    layers = [(layer, rows.shape[1], str(rows.dtype)) for layer, rows in sorted(pool.rows.items())]
    return hashlib.sha256(repr(layers).encode()).digest()[:16]
