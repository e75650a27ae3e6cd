"""How much of the host's memory the models may have together, and what a worker really takes.

Owns what is read of /proc and of the control group. Nothing here waits: these files are made by the
kernel from its counters, but for `read_footprint`, which walks the worker's pages and belongs on a
thread.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

RESERVE: Final = 0.1
"""The share of what is to be had that `auto` leaves to everybody else: the page cache of other
programs, the daemon itself, and what workers take for a moment (cells that are set aside)."""

_PROC: Final = Path("/proc")
_HUGE_PAGES: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_PAGE_BYTES: Final = 4096
_SHARED: Final = 2  # statm: pages of files and of shared memory


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a worker takes. `pss_bytes` counts pages that others map as well by its share,
    `own_bytes` are those that it has alone whatever others do."""

    pss_bytes: int
    own_bytes: int


def read_footprint(pid: int, *, proc: Path = _PROC) -> Footprint | None:
    """None if the process is gone, or not ours to look at."""
    fields = read_kib_fields(proc / str(pid) / "smaps_rollup")
    if "Pss" not in fields:
        return None
    return Footprint(fields["Pss"], fields.get("Pss_Anon", 0) + fields.get("Pss_Shmem", 0))


def has_huge_pages(switch: Path = _HUGE_PAGES) -> bool:
    """May a process have memory in pages of 2 MiB if it asks for them? (The kernel's
    Documentation/admin-guide/mm/transhuge.rst.)"""
    with contextlib.suppress(OSError):
        return "[never]" not in switch.read_text()
    return False


def total_memory(*, proc: Path = _PROC) -> int:
    """What the machine has, whoever uses it now. 0 where it is hidden."""
    return read_kib_fields(proc / "meminfo").get("MemTotal", 0)


def memory_budget(pids: Iterable[int], *, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """What the workers with these `pids` and further ones may take together: what is to be had now,
    and what they have. Pages of mapped files count as to be had, by the kernel as here."""
    available: float = read_kib_fields(proc / "meminfo").get("MemAvailable", 0)
    for folder in _own_cgroups(proc, cgroups):
        available = min(available, _left_in(folder))
    held = sum(_own_bytes(pid, proc) for pid in pids)
    return int((available + held) * (1 - RESERVE))


def _own_bytes(pid: int, proc: Path) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = [int(text) for text in (proc / str(pid) / "statm").read_text().split()]
        return (pages[1] - pages[_SHARED]) * _PAGE_BYTES
    return 0


def _own_cgroups(proc: Path, cgroups: Path) -> list[Path]:
    """Folders of the daemon's control group and of those around it (version 2)."""
    with contextlib.suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            number, _, path = line.partition("::")
            if number == "0":
                own = cgroups / path.lstrip("/")
                return [own, *(p for p in own.parents if p.is_relative_to(cgroups))]
    return []


def _left_in(folder: Path) -> float:
    """What a control group may still take, caches that it can drop included."""
    try:
        most = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
    except (OSError, ValueError):  # `max`, or the root
        return math.inf
    droppable = 0
    with contextlib.suppress(OSError):
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("active_file", "inactive_file", "slab_reclaimable") and value.isdecimal():
                droppable += int(value)
    return max(0, most - used + droppable)


def read_kib_fields(path: Path) -> dict[str, int]:
    """Bytes by name, of a file whose lines are `Name:  123 kB`."""
    fields = {}
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, rest = line.partition(":")
            words = rest.split()
            if len(words) == 2 and words[1] == "kB" and words[0].isdecimal():
                fields[name] = int(words[0]) * 1024
    return fields
