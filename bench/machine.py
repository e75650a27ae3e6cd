"""The machine a benchmark ran on, and how much of it others used meanwhile.

A figure from a busy machine is no figure: with as many compute threads as cores, a decode step ends
when its slowest thread does, so one busy neighbour costs far more than its share.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import time
from typing import Any, Final

import psutil
from live import ROOT, num_cores

DISTURBED_SHARE: Final = 0.05
"""From this share of the machine's CPU time in other hands on, figures are marked as disturbed."""


QUIET_S: Final = 3


def describe_machine() -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "cpu": _cpu_name(),
        "cores": num_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "llama_cpp_python": importlib.metadata.version("llama-cpp-python"),
        "commit": _commit(),
        "load_average": os.getloadavg(),
    }


def _cpu_name() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    """The commit that is measured, with a + when files differ from it."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # not a clone, or no git: the figures stand without it
    return described.stdout.strip()


class CpuWatch:
    """How much CPU time processes other than ours used since this was made. Ours are this one and
    its descendants."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._busy_s = _busy_s()
        self._own_s = _own_s()

    def others_share(self) -> float:
        """A part of all cores' time, 0 to 1."""
        others_s = (_busy_s() - self._busy_s) - (_own_s() - self._own_s)
        all_s = (time.monotonic() - self._started) * (os.cpu_count() or 1)
        return max(0.0, others_s / all_s) if all_s else 0.0


def wait_quiet(*, limit_s: float) -> bool:
    """Wait until other processes leave the machine alone for a few seconds. False if they never
    did within `limit_s`."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        watch = CpuWatch()
        time.sleep(QUIET_S)
        if watch.others_share() < DISTURBED_SHARE:
            return True
    return False


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times[:8]) - times.idle - times.iowait)  # guest times are part of user


def _own_s() -> float:
    """Of this process, of its descendants that live, and of those that were waited for."""
    total = 0.0
    for process in (own := psutil.Process(), *own.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total
