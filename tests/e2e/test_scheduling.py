"""Who comes first, who is refused, and what becomes of those whose time is over: on a real model.

One place per model where the order matters, so that "started" events tell it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from harness import Daemon, RawClient, running_daemon, smollm2_path, wait_until

from openclawctl import Client, DeadlineExceeded, Overloaded
from openclawctl.wire.messages import Cancel, Delta, Done, Error, Event

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LONG = {"max_tokens": 8000, "ignore_eos": True, "stream": True}
"""A request that runs until it is ended from outside."""


@contextlib.contextmanager
def narrow_daemon(folder: Path, limits: str) -> Iterator[Daemon]:
    """A daemon whose model has one place."""
    config = folder / "c.yaml"
    config.write_text(
        f"models: {{m: {{path: {smollm2_path()}, preload: true, parallel: 1, context: 8192}}}}\n"
        "inference_settings: {max_output_tokens: 8000}\n"
        f"resource_limits: {limits}\n"
    )
    with running_daemon("--config", str(config), folder=folder) as daemon:
        yield daemon.wait_ready()


@pytest.fixture
def narrow(folder: Path) -> Iterator[Daemon]:
    """One place, and eight in the queue."""
    with narrow_daemon(folder, "{max_queued_requests: 8}") as daemon:
        yield daemon


def generate(raw: RawClient, number: int, priority: str, **params: Any) -> None:
    params = {"max_tokens": 1, **params}
    raw.request(number, "generate", prompt=f"Number {number}", priority=priority, **params)


def next_event(raw: RawClient, kind: str, number: int) -> Event:
    while (event := raw.next_of(Event, number)).kind != kind:
        pass
    return event


def hold(raw: RawClient, number: int, priority: str) -> None:
    """Take a place and keep it."""
    generate(raw, number, priority, **LONG)
    raw.next_of(Delta, number)


def wait_queued(daemon: Daemon, num_waiting: int) -> None:
    with Client(socket_path=str(daemon.socket)) as client:
        wait_until(lambda: client.status()["requests"]["queued"] == num_waiting, what="the queue")


def order_of_starts(raw: RawClient, count: int) -> list[int]:
    order = []
    while len(order) < count:
        event = raw.next_of(Event)
        if event.kind == "started":
            order.append(event.id)
    return order


def rows(daemon: Daemon) -> dict[str, tuple[Any, ...]]:
    """State, error code, whether its counts are exact, and tokens by kind, by request id."""
    database = sqlite3.connect(f"file:{daemon.state_dir}/ledger.sqlite3?mode=ro", uri=True)
    try:
        found = database.execute("SELECT request_id, state, error_code, counts FROM requests")
        tokens: dict[str, dict[str, int]] = {}
        for request_id, kind, number in database.execute("SELECT * FROM tokens"):
            tokens.setdefault(request_id, {})[kind] = number
        return {row[0]: (*row[1:], tokens[row[0]]) for row in found}
    finally:
        database.close()


def test_the_line_goes_by_priority_and_within_one_by_arrival(narrow: Daemon) -> None:
    with RawClient(narrow.socket) as raw:
        hold(raw, 0, "interactive")
        for number, priority in enumerate(
            ["batch", "normal", "interactive", "normal", "interactive"], 1
        ):
            generate(raw, number, priority)
            assert next_event(raw, "queued", number).data["position"] >= 1
        with Client(socket_path=str(narrow.socket)) as client:
            queue = client.status()["models"][0]["queue"]
        waiting = {name: standing["waiting"] for name, standing in queue.items()}
        assert waiting == {"batch": 1, "normal": 2, "interactive": 2}
        assert queue["interactive"]["running"] == 1
        raw.send(Cancel(0))
        order = order_of_starts(raw, 5)
    assert order == [3, 5, 2, 4, 1]


def test_an_urgent_request_starts_beside_those_who_hold_every_place(narrow: Daemon) -> None:
    with RawClient(narrow.socket) as raw:
        hold(raw, 0, "batch")
        generate(raw, 1, "batch")
        next_event(raw, "queued", 1)
        generate(raw, 2, "interactive")
        assert order_of_starts(raw, 1) == [2]
        raw.next_of(Done, 2)
        raw.next_of(Delta, 0)  # which was set aside, and goes on
        raw.send(Cancel(0))
        assert order_of_starts(raw, 1) == [1]


def test_nobody_is_overtaken_more_often_than_configured(folder: Path) -> None:
    with narrow_daemon(folder, "{max_skips: 2}") as daemon, RawClient(daemon.socket) as raw:
        hold(raw, 0, "interactive")
        generate(raw, 1, "batch")
        for number in range(2, 6):
            generate(raw, number, "interactive")
            next_event(raw, "queued", number)
        raw.send(Cancel(0))
        assert order_of_starts(raw, 5) == [2, 3, 1, 4, 5]


def test_a_full_queue_refuses_and_says_when_to_come_back(narrow: Daemon) -> None:
    with RawClient(narrow.socket) as raw, Client(socket_path=str(narrow.socket)) as client:
        client.generate("x", max_tokens=2)  # from here on an estimate is possible
        hold(raw, 0, "normal")
        for number in range(1, 8):
            generate(raw, number, "normal")
        wait_queued(narrow, 7)
        with (
            Client(socket_path=str(narrow.socket), retries=0) as impatient,
            pytest.raises(Overloaded, match="max_queued_requests is 8, of which 1") as caught,
        ):
            impatient.generate("x")
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s > 0
        generate(raw, 8, "interactive")  # has a place in the queue, and needs none
        assert next_event(raw, "started", 8)
        assert client.status()["models"][0]["queue"]["normal"]["eta_s"] > 0


def test_a_deadline_passes_while_the_model_loads(folder: Path) -> None:
    config = folder / "c.yaml"
    config.write_text(f"models: {{m: {{path: {smollm2_path()}}}}}\n")
    with running_daemon("--config", str(config), folder=folder) as daemon:
        daemon.wait_ready()
        with Client(socket_path=str(daemon.socket)) as client:
            with pytest.raises(
                DeadlineExceeded, match=r"0\.01 s passed while .* to load"
            ) as caught:
                client.generate("x", deadline_s=0.01)
            assert "openclawctl load" in caught.value.hint
            assert client.generate("x", max_tokens=1).usage.completion_tokens == 1
        assert [row[0] for row in rows(daemon).values()] == ["done"]


def test_a_deadline_passes_in_the_queue_and_costs_nothing(narrow: Daemon) -> None:
    with RawClient(narrow.socket) as raw, Client(socket_path=str(narrow.socket)) as client:
        hold(raw, 0, "normal")
        with pytest.raises(DeadlineExceeded, match="waited for its turn"):
            client.generate("x", deadline_s=0.3)
        status = client.status()
        assert (status["requests"]["running"], status["requests"]["queued"]) == (1, 0)
        (row,) = (row for row in rows(narrow).values() if row[1] == "deadline-exceeded")
        assert row == (
            "failed",
            "deadline-exceeded",
            "exact",
            {"prompt": 0, "cached": 0, "completion": 0},
        )


def test_a_deadline_passes_while_computing_and_every_token_is_counted(narrow: Daemon) -> None:
    with RawClient(narrow.socket) as raw, Client(socket_path=str(narrow.socket)) as client:
        generate(raw, 1, "normal", deadline_s=2.0, **LONG)
        request_id = next_event(raw, "started", 1).data["request_id"]
        num_tokens = 0
        while isinstance(message := raw.next(), Delta):
            num_tokens += len(message.token_ids)
        assert isinstance(message, Error)
        assert message.code == "deadline-exceeded"
        assert "was computed" in message.message
        assert num_tokens
        row = rows(narrow)[request_id]
        assert row[:3] == ("failed", "deadline-exceeded", "exact")
        assert row[3]["completion"] == num_tokens
        assert row[3]["prompt"] > 0
        # The place is free: what comes next need not wait, and the daemon counts no more steps.
        steps = client.status()["models"][0]["steps"]
        kinds: list[str] = []
        client.generate("x", max_tokens=1, on_event=lambda event: kinds.append(event.kind))
        assert kinds == ["started"]
        assert client.status()["models"][0]["steps"] - steps <= 2


def test_a_deadline_that_is_met_changes_nothing(daemon: Daemon) -> None:
    with Client(socket_path=str(daemon.socket)) as client:
        result = client.generate("x", max_tokens=2, deadline_s=100, priority="interactive")
        assert result.usage.completion_tokens >= 1
        assert len(client.embed(["a"], deadline_s=100, priority="batch")) == 1


@pytest.mark.parametrize(
    ("num_texts", "stage"), [(2000, "had its prompt read"), (100, "was computed")]
)
def test_a_deadline_ends_every_text_of_an_embed(narrow: Daemon, num_texts: int, stage: str) -> None:
    with RawClient(narrow.socket) as raw:
        raw.request(1, "embed", input=["word " * 1000] * num_texts, deadline_s=1.0)
        end = raw.next_of_any(Done, Error)
        assert isinstance(end, Error)
        assert end.code == "deadline-exceeded"
        assert stage in end.message
        raw.request(2, "embed", input=["short"])
        assert raw.next_of(Done, 2)
