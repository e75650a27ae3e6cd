"""Draining by hand: nothing new is taken, what is open is finished, and everything says so."""

from __future__ import annotations

import threading

import pytest
from harness import Daemon, RawClient

from openclawctl import Client, Draining
from openclawctl.wire.messages import Done, Error, Event

LONG = {"prompt": "Once", "max_tokens": 200, "ignore_eos": True}


def start(client: RawClient, request_id: int) -> None:
    client.request(request_id, "generate", **LONG)
    while client.next_of(Event, request_id).kind != "started":
        pass


def test_what_is_open_is_finished_and_nothing_new_is_taken(own_daemon: Daemon) -> None:
    with RawClient(own_daemon.socket) as worker, Client(own_daemon.socket, retries=0) as client:
        start(worker, 1)
        assert client.drain() == {"state": "draining", "open": 1}
        with pytest.raises(Draining, match=r"user:root told it to drain .* ago") as caught:
            client.generate("Hello")
        assert caught.value.exit_status == 6
        assert "openclawctl resume" in caught.value.hint
        with pytest.raises(Draining):
            client.tokenize("Hello")
        assert client.status()["server"]["state"] == "draining"
        heard: list[int] = []
        assert client.drain(wait=True, on_progress=heard.append) == {"state": "drained", "open": 0}
        assert heard == [1]
        end = worker.next_of(Done, 1)
        assert end.result["usage"]["completion_tokens"] == 200
        status = client.status()
        assert status["server"]["state"] == "drained"
        assert status["server"]["drain"]["by"] == "user:root"
        assert status["health"]["reasons"][0]["message"] == (
            "the daemon is drained, and takes no new requests until `openclawctl resume`"
        )
        own_daemon.wait_notification("STATUS=drained (user:root told it to drain ")
        assert client.resume() == {"state": "ready"}
        assert client.generate("Hello", max_tokens=1).finish_reason == "length"
        status = client.status()
        assert (status["server"]["drain"], status["health"]["status"]) == (None, "ok")
        actions = [row["action"] for row in client.audit()["rows"]]
        assert [each for each in actions if each in ("drain", "resume")] == [
            "drain", "drain", "resume",
        ]  # fmt: skip


def test_somebody_resumes_while_another_waits(own_daemon: Daemon) -> None:
    with RawClient(own_daemon.socket) as worker, Client(own_daemon.socket) as client:
        start(worker, 1)
        is_waiting = threading.Event()
        found = []
        waiter = threading.Thread(
            target=lambda: found.append(
                client.drain(wait=True, on_progress=lambda _: is_waiting.set())
            )
        )
        waiter.start()
        assert is_waiting.wait(20)
        client.resume()
        waiter.join(20)
        worker.next_of(Done, 1)
    assert found == [{"state": "ready", "open": 1}]


def test_a_daemon_that_drains_can_be_stopped(own_daemon: Daemon) -> None:
    with RawClient(own_daemon.socket) as worker, RawClient(own_daemon.socket) as waiter:
        start(worker, 1)
        waiter.request(1, "drain", wait=True)
        assert waiter.next_of(Event, 1).data == {"open": 1}
        assert own_daemon.terminate() == 0
        assert worker.next_of_any(Done, Error).type == "done"
        assert waiter.next_of(Done, 1).result == {"state": "drained", "open": 0}
