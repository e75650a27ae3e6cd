"""What an idle daemon without models costs: memory (PSS) and CPU time per minute."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from live import running_daemon
from measure import Report, Row, Settings, Target

from openclawctl import Client

MINUTE_S: Final = 60


def run(settings: Settings) -> Report:
    watch_s = settings.pick(10, MINUTE_S)
    with running_daemon() as daemon:
        daemon.wait_ready()
        with Client(daemon.socket) as client:
            client.status()  # everything that an answer needs is loaded
        before = _cpu_s(daemon.pid)
        time.sleep(watch_s)
        cpu_s = (_cpu_s(daemon.pid) - before) * MINUTE_S / watch_s
        pss_mb = daemon.pss_bytes() / 1e6
    row: Row = {"PSS MB": pss_mb, "CPU s per minute": cpu_s, "watched s": watch_s}
    targets = [
        Target("idle daemon, PSS in MB", pss_mb, at_most=60),
        Target("idle daemon, CPU seconds per minute", cpu_s, at_most=0.1),
    ]
    return Report([row], targets)


def _cpu_s(pid: int) -> float:
    """CPU time of all threads. From schedstat, in nanoseconds: the figures in /proc/PID/stat count
    whole ticks of 10 ms, a tenth of the target."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
