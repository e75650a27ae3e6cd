"""What processes take of the machine, by the kernel's word (proc(5)), for `/metrics`."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class ProcessReading:
    """One process at one moment. `resident_bytes` has its mapped model in it."""

    cpu_s: float
    resident_bytes: int
    virtual_bytes: int


class ProcessReader:
    """Keeps one handle for each process it was asked about, which halves what a look costs."""

    def __init__(self) -> None:
        self._known: dict[int, psutil.Process] = {}

    def read(self, pid: int) -> ProcessReading | None:
        """None when it is gone."""
        with contextlib.suppress(psutil.Error):
            process = self._known.get(pid)
            if process is None:
                process = self._known[pid] = psutil.Process(pid)
            times, memory = process.cpu_times(), process.memory_info()
            return ProcessReading(times.user + times.system, memory.rss, memory.vms)
        self._known.pop(pid, None)
        return None

    def forget_all_but(self, pids: set[int]) -> None:
        for pid in self._known.keys() - pids:
            del self._known[pid]
