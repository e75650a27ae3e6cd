"""The terms of a sum of memory."""

from __future__ import annotations

from dataclasses import dataclass

from openclawd.fleet.residency import HOST


@dataclass(frozen=True, slots=True)
class Part:
    """One term. `how` is its arithmetic in words and numbers. `is_mapped`: pages of the model's
    file, which every worker with the same file shares."""

    name: str
    num_bytes: int
    how: str
    device: str = HOST
    is_mapped: bool = False
