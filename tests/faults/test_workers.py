"""A worker that dies, hangs on to nothing, and comes back."""

from __future__ import annotations

import signal
import sqlite3
from typing import TYPE_CHECKING

import pytest
from harness import RawClient, wait_until

from openclawctl import Client, WorkerDied
from openclawctl.wire.messages import Delta, Error

if TYPE_CHECKING:
    from harness import Daemon


def test_killing_the_worker_ends_open_requests_and_the_model_comes_back(own_daemon: Daemon) -> None:
    (worker,) = own_daemon.workers()
    with Client(socket_path=str(own_daemon.socket), retries=0) as client:
        with client.generate("Count: 1 2 3", max_tokens=500, stream=True) as stream:
            next(iter(stream))
            worker.send_signal(signal.SIGKILL)
            with pytest.raises(WorkerDied, match="smollm2"):
                list(stream)
        answer = client.generate("Hello", max_tokens=4)
        assert answer.usage.completion_tokens > 0
        (row,) = client.status()["models"]
        assert row["state"] == "ready"
        assert row["worker_pid"] != worker.pid
    database = sqlite3.connect(own_daemon.state_dir / "ledger.sqlite3")
    rows = database.execute("SELECT state, error_code FROM requests ORDER BY request_id").fetchall()
    database.close()
    assert rows == [("failed", "worker-died"), ("done", None)]


def test_every_open_request_gets_its_end_when_the_worker_dies(own_daemon: Daemon) -> None:
    (worker,) = own_daemon.workers()
    with RawClient(own_daemon.socket) as raw:
        for number in range(12):  # eight run, four wait for their turn
            raw.request(number, "generate", prompt=f"{number} is", max_tokens=500, stream=True)
        raw.next_of(Delta)
        worker.send_signal(signal.SIGKILL)
        ends = {}
        while len(ends) < 12:
            error = raw.next_of(Error)
            ends[error.id] = error.code
        assert set(ends.values()) == {"worker-died"}


def test_a_worker_dies_with_its_daemon(own_daemon: Daemon) -> None:
    own_daemon.kill()


def test_a_stopped_daemon_leaves_no_worker(own_daemon: Daemon) -> None:
    workers = own_daemon.workers()
    assert own_daemon.terminate() == 0
    assert not any(worker.is_running() for worker in workers)
    assert not own_daemon.socket.exists()


def test_crash_after_crash_the_model_is_given_up_and_load_revives_it(own_daemon: Daemon) -> None:
    with Client(socket_path=str(own_daemon.socket), retries=0) as client:

        def row() -> dict[str, object]:
            found: dict[str, object] = client.status()["models"][0]
            return found

        killed = set()
        for _ in range(3):
            wait_until(lambda: row()["state"] == "ready", what="the restart")
            for worker in own_daemon.workers():
                killed.add(worker.pid)
                worker.kill()
            wait_until(lambda: row()["worker_pid"] not in killed, what="the worker's death")
        wait_until(lambda: row()["state"] in ("ready", "backoff", "loading"), what="a state")
        client.load("smollm2")
        assert row()["state"] == "ready"
