"""Models come and go by memory: a real daemon, tiny models, room for two of them."""

from __future__ import annotations

import json
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from harness import running_daemon, short_folder

from openclawctl import Client
from openclawctl.wire.errors import NoMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Daemon
    from models.library import ModelLibrary

BUDGET = "120MiB"
"""One of the tiny models takes 48 MiB, most of it the process."""

TIMEOUT_S = 60

SMALL = {"parallel": 2, "context": 256, "keep_alive": "forever"}


@pytest.fixture(scope="module")
def crowded(models: ModelLibrary) -> Iterator[Daemon]:
    path = str(models.tiny("full"))
    configured = {name: {"path": path, **SMALL} for name in "abc"}
    configured["pinned"] = {**configured["a"], "pinned": True}
    del configured["pinned"]["keep_alive"]
    huge = {"path": path, "parallel": 64, "context": 16_384}
    configured["huge"] = huge
    configured["flexible"] = {**huge, "min_parallel": 2, "min_context": 512}
    with short_folder() as folder:
        config = folder / "c.json"
        limits = {"memory": BUDGET, "group_wait": "100ms"}
        config.write_text(json.dumps({"models": configured, "resource_limits": limits}))
        with running_daemon("--config", str(config), folder=folder) as daemon:
            yield daemon.wait_ready()


@pytest.fixture
def client(crowded: Daemon) -> Iterator[Client]:
    with Client(crowded.socket) as client:
        for row in client.status()["models"]:
            client.unload(row["name"])
        yield client


def _states(client: Client) -> dict[str, str]:
    return {row["name"]: row["state"] for row in client.status()["models"]}


def _ready(client: Client) -> set[str]:
    return {name for name, state in _states(client).items() if state == "ready"}


def test_the_least_recently_used_makes_way(client: Client) -> None:
    for name in ("a", "b", "a", "c"):
        client.generate("x", model=name, max_tokens=1)
    assert _ready(client) == {"a", "c"}
    reasons = {row["name"]: row["reason"] for row in client.status()["models"]}
    assert reasons["b"] == "unloaded to make room for another model"


def test_a_model_in_use_is_not_sent_away(client: Client) -> None:
    """Both that are there compute; one of them ends first, and then makes way."""
    done: list[str] = []

    def ask(name: str, tokens: int) -> None:
        client.generate("x", model=name, max_tokens=tokens)
        done.append(name)

    for name in ("a", "b"):
        client.load(name)
    with ThreadPoolExecutor() as pool:
        long = pool.submit(ask, "a", 200)
        short = pool.submit(ask, "b", 100)
        other = pool.submit(ask, "c", 1)
        for each in (long, short, other):
            each.result()
    assert len(done) == 3
    assert "c" in _ready(client)


def test_a_pinned_model_stays(client: Client) -> None:
    for name in ("pinned", "a", "b", "c"):
        client.generate("x", model=name, max_tokens=1)
    assert _ready(client) == {"pinned", "c"}


def test_what_can_never_fit_is_refused_before_anything_is_read(
    client: Client, crowded: Daemon
) -> None:
    shown = client.show("huge")["memory"]
    assert (shown["can_fit"], shown["is_loaded"]) == (False, False)
    with Client(crowded.socket, retries=0) as impatient, pytest.raises(NoMemory) as caught:
        impatient.generate("x", model="huge")
    assert "needs" in caught.value.message
    assert "64 sequences of 16384 tokens" in caught.value.message
    assert "120.0 MiB" in caught.value.message
    assert "model huge: worker" not in crowded.log()


def test_a_model_that_may_shrink_does(client: Client) -> None:
    result = client.load("flexible")
    assert result["info"]["parallel"] < 64
    assert result["info"]["context"] >= 512
    with pytest.raises(Exception, match="choices"):
        client.generate("x", model="flexible", n=64, max_tokens=1)


def test_requests_for_one_cold_model_are_one_load(client: Client, crowded: Daemon) -> None:
    before = crowded.log().count("model a: loading")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: client.generate("x", model="a", max_tokens=1), range(8)))
    assert crowded.log().count("model a: loading") == before + 1


def test_a_request_may_say_how_long_the_model_stays(client: Client) -> None:
    client.generate("x", model="a", max_tokens=1, keep_alive_s=60)
    row = next(row for row in client.status()["models"] if row["name"] == "a")
    assert 0 < row["expires_in_s"] <= 60
    client.generate("x", model="a", max_tokens=1)
    row = next(row for row in client.status()["models"] if row["name"] == "a")
    assert row["expires_in_s"] is None
    client.generate("x", model="a", max_tokens=1, keep_alive_s=0)
    while _states(client)["a"] != "unloaded":
        client.watch(lambda rows: None, num_updates=2)


def test_watching_tells_of_changes(client: Client, crowded: Daemon) -> None:
    """First what is the case, then what changes."""
    states: list[str] = []
    has_begun = threading.Event()

    def on_models(rows: list[dict[str, Any]]) -> None:
        state = next(row["state"] for row in rows if row["name"] == "b")
        if state not in states[-1:]:
            states.append(state)
        has_begun.set()
        if state == "ready":
            raise _SeenEnoughError

    def watch() -> None:
        with Client(crowded.socket) as other, pytest.raises(_SeenEnoughError):
            other.watch(on_models)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        assert has_begun.wait(TIMEOUT_S)
        client.load("b")
        watching.result(TIMEOUT_S)
    assert states == ["unloaded", "loading", "ready"]


class _SeenEnoughError(Exception):
    """Ends a watch."""


def test_the_sum_is_measured_once_it_was_loaded(client: Client) -> None:
    client.generate("x", model="a", max_tokens=1)
    seen = []
    while not seen or seen[-1]["basis"] != "measured":
        client.watch(lambda rows: None, num_updates=1)
        seen.append(client.show("a")["memory"])
    assert seen[-1]["is_loaded"]
    assert seen[-1]["total_bytes"] < 120 * 2**20


def test_a_load_that_runs_out_of_memory_is_tried_smaller(models: ModelLibrary) -> None:
    """The sum fits the budget, but the machine does not have it: 2 GiB of cells, where a process
    may have 1.5 GiB in all."""
    model = {"path": str(models.tiny("full")), "parallel": 64, "context": 65_536}
    with short_folder() as folder:
        config = folder / "c.json"
        configured = {"flexible": {**model, "min_parallel": 4}, "rigid": model}
        limits = {"memory": "8GiB"}
        config.write_text(json.dumps({"models": configured, "resource_limits": limits}))
        with running_daemon("--config", str(config), folder=folder) as daemon:
            daemon.wait_ready()
            limit = 3 * 2**29
            resource.prlimit(daemon.pid, resource.RLIMIT_AS, (limit, limit))
            with Client(daemon.socket, retries=0) as client:
                info = client.load("flexible")["info"]
                assert 4 <= info["parallel"] < 64
                client.unload("flexible")
                with pytest.raises(NoMemory, match="not enough memory") as caught:
                    client.load("rigid")
                assert caught.value.retry_after_s is not None
