"""`status` on a warm connection while eight streams decode: does a busy model slow the daemon?

The streams are read by another process. Only answers that themselves report eight running requests
are counted.
"""

from __future__ import annotations

import statistics
import time
from typing import Final

from children import child
from live import MODEL, serving
from measure import Report, Row, Settings, Target, percentile

from openclawctl import Client

NUM_STREAMS: Final = 8
PAUSE_S: Final = 0.005
"""Between two questions, so that asking is not a load of its own."""


def run(settings: Settings) -> Report:
    with serving(parallel=NUM_STREAMS) as daemon, Client(daemon.socket) as client:
        idle = _latencies(client, running=0, count=settings.pick(200, 1000))
        with child("load.py", str(daemon.socket), MODEL, str(NUM_STREAMS)) as load:
            load.answer()
            busy = _latencies(client, running=NUM_STREAMS, count=settings.pick(200, 1000))
            rate = client.status()["tokens"]["per_s"]
    rows = [_row("idle", idle), _row(f"{NUM_STREAMS} streams, {rate:.0f} tok/s", busy)]
    target = Target("status p99 with eight streams, ms", percentile(busy, 0.99) * 1e3, at_most=10)
    return Report(rows, [target], {"idle": idle, "busy": busy})


def _latencies(client: Client, *, running: int, count: int) -> list[float]:
    latencies: list[float] = []
    while len(latencies) < count:
        start = time.monotonic()
        answer = client.status()
        latency = time.monotonic() - start
        if answer["requests"]["running"] == running:
            latencies.append(latency)
        time.sleep(PAUSE_S)
    return latencies


def _row(what: str, latencies: list[float]) -> Row:
    return {
        "daemon": what,
        "p50 ms": statistics.median(latencies) * 1e3,
        "p90 ms": percentile(latencies, 0.9) * 1e3,
        "p99 ms": percentile(latencies, 0.99) * 1e3,
        "max ms": max(latencies) * 1e3,
        "samples": len(latencies),
    }
