"""A model whose number of workers follows its load, from a configuration: one more when a request
has waited and there is memory for it, and none where there is not."""

from __future__ import annotations

import contextlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from harness import running_daemon, short_folder, wait_until
from steady_load import Load

from openclawctl import Client
from openclawd.fleet.autoscale import GROW_AFTER_S
from openclawd.fleet.rolling import SCALE_INTERVAL_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Daemon
    from models.library import ModelLibrary

    from openclawctl import Stream

CONTEXT = 16_384
FOR_TWO = "400MiB"
FOR_ONE = "80MiB"
"""One of the tiny models takes 48 MiB, most of it the process."""

DECIDED_AFTER_S = GROW_AFTER_S + 2 * SCALE_INTERVAL_S
"""Whoever has waited so long was looked at when that was long enough for another worker."""


@contextlib.contextmanager
def started(models: ModelLibrary, *, memory: str) -> Iterator[Daemon]:
    model = {
        "path": str(models.tiny("full")),
        "parallel": 1,
        "context": CONTEXT,
        "preload": True,
        "inference_settings": {"max_output_tokens": CONTEXT},
        "autoscale": {"min": 1, "max": 2},
    }
    with short_folder() as folder:
        config = folder / "c.json"
        config.write_text(
            json.dumps({"models": {"m": model}, "resource_limits": {"memory": memory}})
        )
        with running_daemon("--config", str(config), folder=folder) as daemon:
            yield daemon.wait_ready()


def workers_of(client: Client) -> list[dict[str, Any]]:
    (row,) = client.models()
    return list(row["workers"])


def take_the_slot(client: Client) -> Stream:
    """A stream that goes on for as long as a test takes."""
    stream = client.generate(
        "x", stream=True, max_tokens=CONTEXT - 100, ignore_eos=True, temperature=0
    )
    next(stream)
    return stream


def test_under_load_a_second_worker_comes(models: ModelLibrary) -> None:
    """The only slot is taken for good: what else is answered, the second one answers."""
    with started(models, memory=FOR_TWO) as daemon, Client(daemon.socket, retries=0) as client:
        (first,) = workers_of(client)
        with take_the_slot(client) as stream, Load(daemon, num_clients=3) as load:
            load.wait_more(6)
            workers = workers_of(client)
            stream.cancel()
        assert not load.failures
        assert [worker["state"] for worker in workers] == ["ready"] * 2
        assert first["pid"] in {worker["pid"] for worker in workers}


def test_without_memory_for_it_no_second_worker_comes(models: ModelLibrary) -> None:
    with (
        started(models, memory=FOR_ONE) as daemon,
        Client(daemon.socket, retries=0) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        (first,) = workers_of(client)
        with take_the_slot(client) as stream:
            waiting = pool.submit(client.generate, "x", max_tokens=1)
            wait_until(lambda: client.status()["requests"]["queued"] == 1, what="the one who waits")
            decided_at = time.monotonic() + DECIDED_AFTER_S
            for _ in stream:
                if time.monotonic() >= decided_at:
                    break
            (only,) = workers_of(client)
            stream.cancel()
        answer = waiting.result()
        assert answer.timings.queue_s >= GROW_AFTER_S + SCALE_INTERVAL_S
        assert (only["pid"], only["state"]) == (first["pid"], "ready")
        (row,) = client.models()
        assert row["slots"] == 1
