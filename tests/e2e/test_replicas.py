"""A model with several workers: who computes what, and what becomes of it when one of them dies."""

from __future__ import annotations

import contextlib
import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
from harness import Daemon, running_daemon, short_folder, smollm2_path, wait_until
from steady_load import Load

from openclawctl import Client

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STORY = "The ship left the harbour at dawn and nobody on the quay waved. " * 24
"""More than 256 tokens: a beginning that a worker keeps."""


@contextlib.contextmanager
def started(folder: Path, **model: Any) -> Iterator[Daemon]:
    config = {"models": {"m": {"path": str(smollm2_path()), "preload": True, **model}}}
    (folder / "c.json").write_text(json.dumps(config))
    with running_daemon("--config", str(folder / "c.json"), folder=folder) as daemon:
        yield daemon.wait_ready()


@pytest.fixture(scope="module")
def pair() -> Iterator[Daemon]:
    """A daemon with two workers of two slots each, both ready."""
    with short_folder() as folder, started(folder, workers=2, parallel=2, context=1024) as daemon:
        with Client(socket_path=str(daemon.socket)) as client:
            wait_until(lambda: num_ready(client) == 2, what="the second worker")
        yield daemon


def workers_of(client: Client) -> list[dict[str, Any]]:
    (row,) = client.models()
    return list(row["workers"])


def num_ready(client: Client) -> int:
    return sum(worker["state"] == "ready" for worker in workers_of(client))


def steps(client: Client) -> dict[int, int]:
    """Batches that each worker has computed."""
    return {worker["pid"]: worker["steps"] for worker in workers_of(client)}


def test_both_compute_and_their_slots_add_up(pair: Daemon) -> None:
    with Client(socket_path=str(pair.socket)) as client:
        assert client.models()[0]["slots"] == 4
        before = steps(client)
        with Load(pair, num_clients=4) as load:
            load.wait_more(4)
            wait_until(lambda: client.models()[0]["busy"] > 2, what="more than one worker's slots")
        after = steps(client)
    assert len(after) == 2
    assert all(after[pid] > before[pid] for pid in before)


def test_a_prompt_goes_where_its_beginning_is_known(pair: Daemon) -> None:
    with Client(socket_path=str(pair.socket)) as client:
        first = client.generate(STORY, max_tokens=1)
        assert first.usage.cached_tokens == 0
        for question in ("Who?", "Why?", "When?", "Where?"):
            answer = client.generate(STORY + question, max_tokens=1)
            assert answer.usage.cached_tokens >= 256, question


def test_a_beginning_that_is_known_is_no_reason_to_wait(pair: Daemon) -> None:
    """While the worker that knows it is full, the other one computes it."""
    with Client(socket_path=str(pair.socket)) as client, contextlib.ExitStack() as stack:
        streams = [
            client.generate(STORY + text, stream=True, max_tokens=600, ignore_eos=True)
            for text in ("One", "Two")
        ]
        for stream in streams:
            next(stack.enter_context(stream))
        assert sorted(worker["busy"] for worker in workers_of(client)) == [0, 2]
        before = steps(client)
        idle = next(worker["pid"] for worker in workers_of(client) if not worker["busy"])
        assert client.generate(STORY + "Three", max_tokens=1).usage.completion_tokens == 1
        assert steps(client)[idle] > before[idle]
        for stream in streams:
            stream.cancel()


def test_one_of_two_is_killed_under_load_and_no_request_fails(pair: Daemon) -> None:
    with Client(socket_path=str(pair.socket)) as client, Load(pair, num_clients=6) as load:
        for _ in range(2):
            load.wait_more(3)
            victim = workers_of(client)[0]["pid"]
            (process,) = [each for each in pair.workers() if each.pid == victim]
            process.send_signal(signal.SIGKILL)
            load.wait_more(6)
            wait_until(lambda: num_ready(client) == 2, what="another worker")
        load.wait_more(6)
        rows = client.usage_rows()["rows"]
    assert not load.failures
    assert {row["state"] for row in rows if row["op"] == "generate"} <= {"done", "cancelled"}
    assert any(row["worker_restarts"] for row in rows), "somebody was on the worker that died"


def test_what_they_map_together_counts_once(pair: Daemon) -> None:
    with Client(socket_path=str(pair.socket)) as client:
        total = client.models()[0]["memory_bytes"]
    sizes = [worker.memory_info() for worker in pair.workers()]
    assert len(sizes) == 2
    assert total < sum(size.rss for size in sizes)
    assert total > max(size.rss for size in sizes)
