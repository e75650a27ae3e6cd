"""The terms of a sum of memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from openclawd.fleet.residency import HOST

if TYPE_CHECKING:
    from openclawd.worker.messages import Load

STOWED_SHARE: Final = 0.25
"""`stowed_share` of engine/limits.py, which the daemon may not import."""


@dataclass(frozen=True, slots=True)
class Part:
    """One term. `how` is its arithmetic in words and numbers. `is_mapped`: pages of the model's
    file, which every worker with the same file shares."""

    name: str
    num_bytes: int
    how: str
    device: str = HOST
    is_mapped: bool = False


def kept_part(cache_bytes: float, load: Load) -> Part:
    """Prefixes that have left a cache of so many bytes, as many as may."""
    how = f"up to {round(STOWED_SHARE * load.kv_tokens)} tokens that left the KV cache"
    return Part("kept prefixes", round(STOWED_SHARE * cache_bytes), how)
