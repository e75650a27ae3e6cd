"""What workers take of the machine's memory, and whether there is enough for one more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable

    from openclawd.fleet.model import Model

KEPT_FREE_SHARE: Final = 0.05
"""Of the memory that is available, so much is nobody's: what else runs grows and shrinks."""


def memory_bytes(pids: Iterable[int | None]) -> int | None:
    """Resident memory of a model's workers; None without any. What they share counts once: they
    map the same file, and pages of it that one has read are the others' as well."""
    sizes = [size for pid in pids if pid is not None and (size := _size_of(pid)) is not None]
    if not sizes:
        return None
    return sum(own for own, _ in sizes) + max(shared for _, shared in sizes)


def has_room_for_one_more(model: Model) -> bool:
    """Could another worker of this model be had beside those that there are? By what the largest of
    these has to itself, on the host alone: what is on a GPU nobody knows before it is tried."""
    pids = [replica.worker_pid for replica in model.replicas]
    sizes = [size for pid in pids if pid is not None and (size := _size_of(pid)) is not None]
    own = max((own for own, _ in sizes), default=0)
    return own <= (1 - KEPT_FREE_SHARE) * psutil.virtual_memory().available


def _size_of(pid: int) -> tuple[int, int] | None:
    """What a process has resident to itself, and of files and shared memory; None without it."""
    try:
        info = psutil.Process(pid).memory_info()
    except psutil.Error:
        return None
    return info.rss - info.shared, info.shared
