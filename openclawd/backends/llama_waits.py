"""How long compute threads wait for each other awake: as long as it takes where the machine is
theirs, and hardly at all where others want its cores.

Owns when that changes. A step has some 600 barriers at which its threads wait for the slowest. One
that sleeps there costs as much as the work between two barriers, one that spins keeps from its core
whoever the others are waiting for (docs/performance.md, "Compute threads wait awake"). llama.cpp
computes with GCC's OpenMP, whose waits are set before it is loaded; but it waits briefly while a
process has more of its threads than there are cores (`gomp_throttled_spin_count_var`, libgomp's
env.c and config/linux/wait.h). So where others are busy, a few more threads are made, which sleep.
A worker begins as if they were, until it is seen to be alone.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from pathlib import Path
from typing import Final

CHECK_INTERVAL_S: Final = 0.25
"""How often to look who else is busy."""

CROWDED_SHARE: Final = 0.15
"""Of the cores' time. With two cores, 0.5 is one other busy thread; what serves our own requests
takes less than 0.1 (measured 2026-11-29, 16 streams)."""

QUIET_SHARE: Final = 0.10
"""Below it, it is quiet again."""

_NUM_LOOKS: Final = 5
"""How often to look whether nobody else runs: whoever has just handed a request on may still do."""

_LOAD: Final = Path("/proc/loadavg")


def cpus_of_process() -> set[int]:
    """Those that its main thread may use. The calling thread may have one alone: OpenMP gives each
    compute thread its own (`OMP_PROC_BIND`)."""
    return os.sched_getaffinity(os.getpid())


class Waits:
    """Of the compute threads of this process. Belongs to one thread."""

    def __init__(self, num_threads: int) -> None:
        cores = cpus_of_process()
        self._num_cores = len(cores)
        self._is_of_use = num_threads > 1 and _openmp() is not None
        self._watch = _OthersWatch(cores)
        self._next_check_s = 0.0
        # A worker often starts beside others that compute, such as the one that it is to replace:
        # waiting long, its first prompt has taken 40 s there.
        self._crowd = _Crowd(self._num_cores) if self._is_of_use else None

    @property
    def are_short(self) -> bool:
        return self._crowd is not None

    def adapt(self) -> None:
        """Look whether others are busy, if it is time to. After a pause it is only known that they
        are not, if nobody was all the while or nobody is now: who was busy then may not be now."""
        now_s = time.monotonic()
        if not self._is_of_use or now_s < self._next_check_s:
            return
        is_recent = now_s < self._next_check_s + CHECK_INTERVAL_S
        self._next_check_s = now_s + CHECK_INTERVAL_S
        share = self._watch.share()
        if is_recent:
            self.follow(share)
        elif self._crowd is not None and (share < QUIET_SHARE or _is_alone()):
            self.close()

    def follow(self, others_share: float) -> None:
        """Others have used this share of the cores."""
        if self._crowd is None and others_share > CROWDED_SHARE:
            self._crowd = _Crowd(self._num_cores)
        elif self._crowd is not None and others_share < QUIET_SHARE:
            self.close()

    def close(self) -> None:
        """Wait long again, and leave no thread behind."""
        if self._crowd is not None:
            self._crowd.close()
            self._crowd = None


class _Crowd:
    """So many OpenMP threads more, with a master of their own, that it waits briefly."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._is_over = threading.Event()
        is_there = threading.Event()
        self._master = threading.Thread(
            target=self._run, args=(is_there,), name="crowd", daemon=True
        )
        self._master.start()
        is_there.wait()

    def close(self) -> None:
        """Its threads end with their master (libgomp's team.c, `gomp_free_thread`)."""
        self._is_over.set()
        self._master.join()

    def _run(self, is_there: threading.Event) -> None:
        openmp = _openmp()
        assert openmp is not None
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # free(NULL) does nothing
        openmp.GOMP_parallel(nothing, None, self._num_threads + 1, 0)
        is_there.set()
        self._is_over.wait()


class _OthersWatch:
    """What share of the time of some cores others have used since the last look."""

    def __init__(self, cores: set[int]) -> None:
        self._labels = {f"cpu{core}" for core in cores}
        self._num_cores = len(cores)
        self._seen = self._look()

    def share(self) -> float:
        """From 0 to 1. What this process uses is not in it. Where it cannot be known, 1: also so
        soon after the last look that the kernel's ticks (10 ms) say little."""
        before, self._seen = self._seen, self._look()
        if before is None or self._seen is None:
            return 1.0
        seconds, busy_s, own_s = (new - old for new, old in zip(self._seen, before, strict=True))
        if seconds < CHECK_INTERVAL_S:
            return 1.0
        return max(0.0, busy_s - own_s) / (seconds * self._num_cores)

    def _look(self) -> tuple[float, float, float] | None:
        """The monotonic clock, the cores' busy seconds, and this process's. None where /proc/stat
        is hidden."""
        try:
            lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
        except OSError:
            return None
        busy = 0
        for label, *counts in map(str.split, lines):
            if label in self._labels:
                user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, counts)
                busy += user + nice + system + irq + softirq
        return time.monotonic(), busy / os.sysconf("SC_CLK_TCK"), time.process_time()


def _is_alone() -> bool:
    """Does nobody else run on this machine at this moment? (proc(5), /proc/loadavg.)"""
    try:
        for _ in range(_NUM_LOOKS):
            running, _, _ = _LOAD.read_text(encoding="ascii").split()[3].partition("/")
            if int(running) <= 1:
                return True
    except (OSError, ValueError, IndexError):
        return False  # it is hidden
    return False


def _openmp() -> ctypes.CDLL | None:
    """GCC's OpenMP, if this process has loaded it."""
    try:
        library = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD)
    except OSError:
        return None
    library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_uint] * 2]
    library.GOMP_parallel.restype = None
    return library
