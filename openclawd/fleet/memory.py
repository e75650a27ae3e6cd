"""What workers take of the machine's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable


def memory_bytes(pids: Iterable[int | None]) -> int | None:
    """Resident memory of a model's workers; None without any. What they share counts once: they
    map the same file, and pages of it that one has read are the others' as well."""
    sizes = [size for pid in pids if pid is not None and (size := _size_of(pid)) is not None]
    if not sizes:
        return None
    return sum(own for own, _ in sizes) + max(shared for _, shared in sizes)


def _size_of(pid: int) -> tuple[int, int] | None:
    """What a process has resident to itself, and of files and shared memory; None without it."""
    try:
        info = psutil.Process(pid).memory_info()
    except psutil.Error:
        return None
    return info.rss - info.shared, info.shared
