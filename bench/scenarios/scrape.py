"""What a scrape of `/metrics` costs, with twenty loaded models that two hundred principals use.

The models are tiny ones: what counts are their series. Each principal has a key, a tier and a
bucket of its own in a budget, and has used one model. Between two scrapes is more than the time for
which an answer is kept.
"""

from __future__ import annotations

import json
import statistics
import time
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from live import running_daemon, short_folder
from measure import Report, Row, Settings, Target, percentile
from models.library import ModelLibrary
from scrape import get, metrics_socket

from openclawctl import Client

if TYPE_CHECKING:
    from live import Daemon

NUM_MODELS: Final = 20
NUM_PRINCIPALS: Final = 200
TIERS: Final = ("default", "silver", "gold")
PAUSE_S: Final = 0.15


def run(settings: Settings) -> Report:
    with short_folder() as folder:
        config = folder / "openclawd.json"
        config.write_text(json.dumps(_config(ModelLibrary(folder).tiny("full"))))
        with running_daemon("--config", str(config), folder=folder) as daemon:
            daemon.wait_ready()
            _use(daemon, folder)
            times, cpu_s, text = _scrape(daemon, count=settings.pick(50, 200))
    row: Row = {
        "lines": text.count("\n"),
        "KiB": len(text) / 1024,
        "p50 ms": statistics.median(times) * 1e3,
        "p99 ms": percentile(times, 0.99) * 1e3,
        "CPU ms": cpu_s * 1e3,
    }
    targets = [
        Target("a scrape, ms", statistics.median(times) * 1e3, at_most=20),
        Target("a scrape, CPU ms of the daemon", cpu_s * 1e3, at_most=10),
    ]
    return Report([row], targets, {"times": times})


def _config(path: Path) -> dict[str, Any]:
    model = {"path": str(path), "preload": True, "context": 256, "parallel": 2, "threads": 1}
    return {
        "models": {f"model{number}": model for number in range(NUM_MODELS)},
        "default_model": "model0",
        "tiers": {name: {} for name in TIERS},
        "budgets": [{"name": "each", "per": "principal", "tokens": 1_000_000}],
    }


def _use(daemon: Daemon, folder: Path) -> None:
    """One request of each principal; each tier meets each model."""
    tiers, key = cycle(TIERS), folder / "key"
    key.touch(0o600)
    with Client(daemon.socket) as admin:
        for number in range(NUM_PRINCIPALS):
            made = admin.create_key(f"app{number}", role="user", tier=next(tiers))
            key.write_text(made["secret"])
            with Client(daemon.socket, api_key_file=key) as client:
                client.generate("a", model=f"model{number % NUM_MODELS}", max_tokens=3)


def _scrape(daemon: Daemon, *, count: int) -> tuple[list[float], float, str]:
    """Times as a scraper sees them, and the daemon's CPU time for each."""
    path, times, text = metrics_socket(daemon), [], ""
    before = _cpu_s(daemon.pid)
    for _ in range(count):
        start = time.monotonic()
        _, text = get(path, "/metrics")
        times.append(time.monotonic() - start)
        time.sleep(PAUSE_S)
    return times, (_cpu_s(daemon.pid) - before) / count, text


def _cpu_s(pid: int) -> float:
    """CPU time of all threads, in nanoseconds (proc(5), schedstat)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
