"""Four models of which two fit into memory, and 500 requests that come at random: how many loads
does that cost?

The yardstick is computed from the recorded stream (belady.py): the fewest loads with which each
request waits for its model no longer than `group_wait`, and what a server that loads at once and
drops the least recently used model would do. Each model is a file of its own, so that none shares
its pages with another.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import shutil
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from belady import belady, grouped_optimum, least_recently_used
from live import running_daemon, short_folder, smollm2_path
from measure import Report, Row, Settings, Target, percentile

from openclawctl import AsyncClient, Client, OpenclawError

if TYPE_CHECKING:
    from pathlib import Path

MODELS: Final = ("a", "b", "c", "d")
NUM_REQUESTS: Final = 500
QUICK_REQUESTS: Final = 150
PER_SECOND: Final = 4.0
GROUP_WAIT_S: Final = 2.0
CAPACITY: Final = 2
SEED: Final = 5
_SETTINGS: Final = {"parallel": 4, "context": 256, "keep_alive": "forever", "preload": False}


@dataclass(slots=True)
class Answer:
    """One request: monotonic times, and the wall clock while it was computed."""

    model: str
    arrived: float
    wait_s: float = 0.0
    started_at: float = 0.0
    ended_at: float = 0.0
    error: str = ""


def run(settings: Settings) -> Report:
    num_requests = settings.pick(QUICK_REQUESTS, NUM_REQUESTS)
    with short_folder() as folder:
        config = _configure(folder)
        _make_room(config, _needed_bytes(folder, config))
        with running_daemon("--config", str(config), folder=folder) as daemon:
            daemon.wait_ready()
            answers = asyncio.run(_ask_all(str(daemon.socket), num_requests))
        stays = _stays(daemon.log())
    return _report(answers, stays)


def _configure(folder: Path) -> Path:
    models = {}
    for name in MODELS:
        path = folder / f"{name}.gguf"
        shutil.copyfile(smollm2_path(), path)
        models[name] = {"path": str(path), **_SETTINGS}
    limits = {"group_wait": f"{GROUP_WAIT_S:g}s"}
    config = folder / "c.json"
    config.write_text(json.dumps({"models": models, "resource_limits": limits}))
    return config


def _needed_bytes(folder: Path, config: Path) -> int:
    """What one of the models is estimated to take: it depends on the CPU."""
    with (
        running_daemon("--config", str(config), folder=folder) as daemon,
        Client(daemon.wait_ready().socket) as client,
    ):
        needed: int = client.show(MODELS[0])["memory"]["total_bytes"]
        return needed


def _make_room(config: Path, needed_bytes: int) -> None:
    """For as many as `CAPACITY` and a half."""
    settings = json.loads(config.read_text())
    settings["resource_limits"]["memory"] = f"{(2 * CAPACITY + 1) * needed_bytes // 2}"
    config.write_text(json.dumps(settings))


async def _ask_all(socket: str, num_requests: int) -> list[Answer]:
    """Requests of two tokens, at times that do not depend on the answers."""
    source = random.Random(SEED)
    gaps = [source.expovariate(PER_SECOND) for _ in range(num_requests)]
    start = time.monotonic()
    answers = []
    async with AsyncClient(socket) as client, asyncio.TaskGroup() as tasks:
        for offset in itertools.accumulate(gaps):
            await asyncio.sleep(max(0.0, start + offset - time.monotonic()))
            answer = Answer(source.choice(MODELS), time.monotonic())
            answers.append(answer)
            tasks.create_task(_ask(client, answer))
    return answers


async def _ask(client: AsyncClient, answer: Answer) -> None:
    def on_event(event: Any) -> None:
        if event.kind == "started":
            answer.wait_s = time.monotonic() - answer.arrived
            answer.started_at = time.time()

    try:
        await client.generate("Once", model=answer.model, max_tokens=2, on_event=on_event)
    except OpenclawError as error:
        answer.error = error.code
    answer.ended_at = time.time()


Stay = tuple[str, float, float, float]
"""A model, when its load began, when it was ready, and when it was gone: wall clock."""


def _stays(log: str) -> list[Stay]:
    """From the daemon's own words."""
    begun: dict[str, list[float]] = {}
    stays: list[Stay] = []
    for line in log.splitlines():
        entry = json.loads(line)
        words = str(entry.get("message", "")).split()
        if words[:1] != ["model"] or len(words) < 3 or not words[1].endswith(":"):
            continue
        name, state = words[1][:-1], words[2].rstrip(":")
        now = datetime.fromisoformat(entry["time"]).timestamp()
        if state in ("loading", "ready"):
            begun.setdefault(name, []).append(now)
        elif state == "unloaded" and len(begun.get(name, [])) == 2:
            loading, ready = begun.pop(name)
            stays.append((name, loading, ready, now))
    return sorted(stays, key=lambda stay: stay[1])


def _report(answers: list[Answer], stays: list[Stay]) -> Report:
    trace = [(answer.arrived - answers[0].arrived, answer.model) for answer in answers]
    optimum = grouped_optimum(trace, CAPACITY, GROUP_WAIT_S)
    row: Row = {
        "requests": len(answers),
        "failed": sum(bool(answer.error) for answer in answers),
        "loads": len(stays),
        "optimum": optimum,
        "without waiting": belady(trace, CAPACITY),
        "naive LRU": least_recently_used(trace, CAPACITY),
        "wait p50 s": percentile([a.wait_s for a in answers], 0.5),
        "wait p99 s": percentile([a.wait_s for a in answers], 0.99),
    }
    targets = [
        Target("failed requests", row["failed"], at_most=0),  # type: ignore[arg-type]
        Target("loads ÷ optimum", len(stays) / optimum, at_most=1.3),
        Target("models in memory at once", _most_at_once(stays), at_most=CAPACITY),
        Target("loads while requests of the model ran", _overlaps(answers, stays), at_most=0),
    ]
    samples = {"arrivals": [time for time, _ in trace]}
    remark = "the stream, as seconds and models: " + " ".join(
        f"{time:.2f}{model}" for time, model in trace
    )
    return Report([row], targets, samples, [remark])


def _most_at_once(stays: list[Stay]) -> int:
    return max(sum(a[1] <= b[1] < a[3] for a in stays) for b in stays)


def _overlaps(answers: list[Answer], stays: list[Stay]) -> int:
    """Requests that were being computed while their own model was being loaded."""
    return sum(
        stay[0] == answer.model and answer.started_at < stay[2] and stay[1] < answer.ended_at
        for answer in answers
        for stay in stays
        if answer.started_at
    )
