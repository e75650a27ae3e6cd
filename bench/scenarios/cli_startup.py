"""`openclawctl status` as a whole process against `python -c 'import click'`, interleaved.

The daemon has no model, so that the answer is small and no worker takes part.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from live import running_daemon
from measure import Report, Row, Settings, Target, median_ratio


def run(settings: Settings) -> Report:
    with running_daemon() as daemon:
        daemon.wait_ready()
        # The installed command, as a user starts it.
        command = str(Path(sys.executable).with_name("openclawctl"))
        commands = {
            "openclawctl status": [command, "--socket", str(daemon.socket), "status"],
            "python -c 'import click'": [sys.executable, "-c", "import click"],
            "python -c pass": [sys.executable, "-c", "pass"],
        }
        samples = _interleave(commands, count=max(15, settings.pick(15, 41)))
    status, click, _ = samples
    ratio = median_ratio(samples[status], samples[click])
    rows: list[Row] = [
        {"process": name, "median ms": statistics.median(times) * 1e3, "min ms": min(times) * 1e3}
        for name, times in samples.items()
    ]
    return Report(rows, [Target("status ÷ import click", ratio, at_most=2.5)], dict(samples))


def _interleave(commands: dict[str, list[str]], *, count: int) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {name: [] for name in commands}
    for command in commands.values():
        _seconds(command)  # byte code and page cache
    for _ in range(count):
        for name, command in commands.items():
            samples[name].append(_seconds(command))
    return samples


def _seconds(command: list[str]) -> float:
    start = time.monotonic()
    subprocess.run(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=True)
    return time.monotonic() - start
