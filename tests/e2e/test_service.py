"""What an administrator sees: notifications to systemd, the queue, log files."""

from __future__ import annotations

import json
import signal
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psutil
import pytest
from harness import RawClient, running_daemon, smollm2_argument, smollm2_path, wait_until

from openclawctl import Client, LimitExceeded
from openclawctl.wire.messages import Cancel, Delta, Done, Event

if TYPE_CHECKING:
    from pathlib import Path

    from harness import Daemon


def test_systemd_hears_of_progress_before_ready(folder: Path) -> None:
    with running_daemon(*smollm2_argument(), folder=folder) as daemon:
        daemon.wait_ready()
        texts = daemon.notifications
        ready = next(i for i, text in enumerate(texts) if "READY=1" in text)
        assert any("EXTEND_TIMEOUT_USEC=" in text for text in texts[:ready])
        daemon.wait_notification("STATUS=smollm2 ready")
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_notification("STOPPING=1")
        assert daemon.process.wait(30) == 0


def test_the_socket_answers_while_a_model_loads(folder: Path) -> None:
    with running_daemon(*smollm2_argument(), folder=folder) as daemon:
        wait_until(daemon.socket.exists, what="the socket")
        with Client(socket_path=str(daemon.socket)) as client:
            assert client.status()["server"]["state"] in ("starting", "ready")
            assert client.generate("x", max_tokens=1).usage.completion_tokens == 1


def test_requests_over_the_batch_wait_in_line_and_hear_of_it(own_daemon: Daemon) -> None:
    with RawClient(own_daemon.socket) as raw:
        for number in range(10):  # eight places
            raw.request(number, "generate", prompt=f"{number}", max_tokens=100, stream=True)
        queued: dict[int, int] = {}
        while len(queued) < 2:
            event = raw.next_of(Event)
            if event.kind == "queued":
                queued[event.id] = event.data["position"]
        assert queued == {8: 1, 9: 2}
        raw.next_of(Delta)
        for number in range(8):
            raw.send(Cancel(number))
        assert raw.next_of(Done, 9).result["timings"]["queue_s"] > 0


def test_a_log_file_is_private_and_reopened_on_sighup(folder: Path) -> None:
    log_file = folder / "openclawd.log"
    config = folder / "c.yaml"
    config.write_text(f"models: {{m: {{path: {smollm2_path()}}}}}\nlogging: {{file: {log_file}}}\n")
    with running_daemon("--config", str(config), folder=folder) as daemon:
        daemon.wait_ready()
        wait_until(log_file.exists, what="the log file")
        assert log_file.stat().st_mode & 0o777 == 0o640
        log_file.rename(folder / "openclawd.log.1")
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(log_file.exists, what="the new log file")
        secret = "the prompt that must not be logged 4711"
        with Client(socket_path=str(daemon.socket), app="billing") as client:
            request_id = client.generate(secret, max_tokens=3, ignore_eos=True).request_id
        wait_until(lambda: request_id in log_file.read_text(), what="the canonical line")
        lines = [json.loads(line) for line in log_file.read_text().splitlines()]
        (line,) = [line for line in lines if line.get("request_id") == request_id]
        assert line["app"] == "billing"
        assert line["completion_tokens"] == 3
        assert {"queue_s", "ttft_s", "total_s", "finish_reason", "principal", "model"} <= set(line)
        assert secret not in log_file.read_text() + daemon.log()
        stored = b"".join(path.read_bytes() for path in daemon.state_dir.glob("ledger*"))
        assert uuid.UUID(request_id).bytes in stored
        assert secret.encode() not in stored


def test_a_message_of_the_configured_size_is_refused_by_the_worker_not_fatal_to_it(
    folder: Path,
) -> None:
    config = folder / "config.yaml"
    config.write_text(
        f"models: {{m: {{path: {smollm2_path()}}}}}\nresource_limits: {{max_frame_bytes: 20MiB}}\n"
    )
    with running_daemon("--config", str(config), folder=folder) as daemon:
        daemon.wait_ready()
        with Client(socket_path=str(daemon.socket)) as client:
            client.load("m")
            worker_pid = client.models()[0]["worker_pid"]
            with pytest.raises(LimitExceeded, match="tokenize takes"):
                client.tokenize("a " * (9 * 1024 * 1024))
            assert client.models()[0]["worker_pid"] == worker_pid


def test_threads_are_there_from_the_start(own_daemon: Daemon) -> None:
    """However many calls that block meet."""
    process = psutil.Process(own_daemon.pid)
    num_threads = process.num_threads()

    def verify(_: int) -> bool:
        with Client(socket_path=str(own_daemon.socket)) as client:
            return bool(client.audit_verify()["valid"])

    with ThreadPoolExecutor(8) as callers:
        assert all(callers.map(verify, range(40)))
    assert process.num_threads() == num_threads
