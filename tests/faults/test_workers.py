"""A worker that dies hangs on to nothing, and comes back. What becomes of its requests is in
`test_survival.py`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from harness import wait_until

from openclawctl import Client

if TYPE_CHECKING:
    from harness import Daemon


def test_a_worker_dies_with_its_daemon(own_daemon: Daemon) -> None:
    own_daemon.kill()


def test_what_the_environment_of_a_worker_is(own_daemon: Daemon) -> None:
    (worker,) = own_daemon.workers()
    environment = worker.environ()
    assert "NOTIFY_SOCKET" not in environment  # readiness is the daemon's to tell
    assert environment["MALLOC_MMAP_THRESHOLD_"] == "1048576"  # what is freed goes back


def test_each_compute_thread_has_a_cpu_and_the_others_have_all(own_daemon: Daemon) -> None:
    with Client(own_daemon.socket) as client:
        client.generate("x", max_tokens=1)
    (worker,) = own_daemon.workers()
    cpus = os.sched_getaffinity(0)
    bound = [os.sched_getaffinity(thread.id) for thread in worker.threads()]
    assert set().union(*(each for each in bound if len(each) == 1)) == cpus
    assert sum(each == cpus for each in bound) >= 2  # what reads and what tokenises


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
