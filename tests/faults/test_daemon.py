"""The daemon's own life: one at a time, a clean stop, and nothing lost when it is killed."""

from __future__ import annotations

import contextlib
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from harness import RawClient, running_daemon, smollm2_argument, smollm2_path, wait_until

from openclawctl import Client, OpenclawError
from openclawctl.wire.messages import Delta, Done, Error, Goaway

if TYPE_CHECKING:
    from pathlib import Path

    from harness import Daemon


def try_to_start(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "openclawd", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_a_second_daemon_on_the_same_socket_is_refused(daemon: Daemon, folder: Path) -> None:
    second = try_to_start("--socket", str(daemon.socket), "--state-dir", str(folder))
    assert second.returncode == 1
    assert f"pid {daemon.pid}" in second.stderr
    assert str(daemon.socket) in second.stderr
    with Client(socket_path=str(daemon.socket)) as client:
        assert client.ping()


def test_a_second_daemon_on_the_same_state_is_refused(daemon: Daemon, folder: Path) -> None:
    arguments = ["--socket", str(folder / "s"), "--state-dir", str(daemon.state_dir)]
    second = try_to_start(*arguments)
    assert second.returncode == 1
    assert f"pid {daemon.pid}" in second.stderr
    assert str(daemon.state_dir) in second.stderr


WHOSE_RELOAD_HAS_A_BUG = """
import sys
from pathlib import Path
from openclawd.config import Config
from openclawd.config.places import find_places
from openclawd.daemon import Settings, run
from openclawd.observe import logs
from openclawd.observe.systemd import Notifier

def read_config():
    raise RuntimeError("a bug of ours")

socket, state_dir = Path(sys.argv[2]), Path(sys.argv[4])
state_dir.mkdir()
places = find_places({}, is_root=False, socket=socket, state_dir=state_dir)
with logs.configured(Config().logging):
    run(Settings(Config(), places, "1", read_config=read_config), Notifier())
"""


def test_a_bug_in_a_reload_is_told_and_leaves_the_daemon_as_it_was(folder: Path) -> None:
    with running_daemon(folder=folder, program=["-c", WHOSE_RELOAD_HAS_A_BUG]) as daemon:
        daemon.wait_ready()
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "because of a bug" in daemon.log(), what="the bug in the log")
        assert "RuntimeError: a bug of ours" in daemon.log()
        with Client(socket_path=str(daemon.socket)) as client:
            with pytest.raises(OpenclawError, match="failed on a bug"):
                client.reload()
            assert client.ping()
        assert daemon.terminate() == 0


def test_a_stale_socket_is_replaced(folder: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(folder / "s"))
    stale.close()
    with running_daemon(folder=folder) as daemon:
        daemon.wait_ready()
        assert daemon.socket.stat().st_mode & 0o777 == 0o660
        with RawClient(daemon.socket) as raw:
            raw.request(1, "ping")
            raw.next_of(Done)


def test_a_file_in_the_sockets_place_is_left_alone(folder: Path) -> None:
    (folder / "s").write_text("precious")
    start = try_to_start("--socket", str(folder / "s"), "--state-dir", str(folder / "d"))
    assert start.returncode == 1
    assert "is not a socket" in start.stderr
    assert (folder / "s").read_text() == "precious"


def test_somebody_elses_live_socket_is_left_alone(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(folder / "s"))
        other.listen()
        start = try_to_start("--socket", str(folder / "s"), "--state-dir", str(folder / "d"))
    assert start.returncode == 1
    assert "answers on" in start.stderr


def test_without_a_model_it_is_ready_at_once_and_says_how_to_get_one(folder: Path) -> None:
    with running_daemon(folder=folder) as daemon:
        daemon.wait_ready()
        daemon.wait_notification("put a GGUF file into")
        with Client(socket_path=str(daemon.socket)) as client:
            assert client.models() == []
            with pytest.raises(OpenclawError, match="names no model"):
                client.generate("x")


def test_nothing_in_the_state_directory_is_open_to_others(daemon: Daemon) -> None:
    modes = {path.name: path.stat().st_mode & 0o077 for path in daemon.state_dir.rglob("*")}
    assert modes.pop("models") in (0, 0o050)
    assert not any(modes.values()), modes


def test_sigterm_lets_accepted_requests_finish_and_refuses_new_ones(own_daemon: Daemon) -> None:
    with RawClient(own_daemon.socket) as raw, RawClient(own_daemon.socket) as other:
        params = {"max_tokens": 40, "ignore_eos": True, "stream": True}
        raw.request(1, "generate", prompt="Count: 1 2 3", **params)
        raw.next_of(Delta)
        own_daemon.process.send_signal(signal.SIGTERM)
        other.next_of(Goaway)
        other.request(1, "generate", prompt="x", max_tokens=1)
        refused = other.next_of(Error)
        assert refused.code == "shutting-down"
        assert refused.retry_after_s
        other.request(2, "status")
        assert other.next_of(Done, 2).result["server"]["state"] == "draining"
        assert raw.next_of(Done).result["usage"]["completion_tokens"] == 40
    assert own_daemon.process.wait(30) == 0


def test_what_does_not_finish_within_the_drain_is_cancelled_with_a_code(folder: Path) -> None:
    config = folder / "c.yaml"
    config.write_text(
        f"models: {{m: {{path: {smollm2_argument()[1].partition('=')[2]}, preload: true}}}}\n"
        "resource_limits: {drain_timeout: 100ms}\n"
    )
    with running_daemon("--config", str(config), folder=folder) as daemon:
        daemon.wait_ready()
        with RawClient(daemon.socket) as raw:
            for number in range(9):  # eight run, one waits
                raw.request(number, "generate", prompt=f"{number}", max_tokens=1000, stream=True)
            raw.next_of(Delta)
            daemon.process.send_signal(signal.SIGTERM)
            ends = [raw.next_of_any(Error, Done) for _ in range(9)]
            codes = {end.code for end in ends if isinstance(end, Error)}
        assert codes == {"shutting-down"}
        assert daemon.process.wait(30) == 0
        assert error_codes(daemon) == {"shutting-down": 9}


def error_codes(daemon: Daemon) -> dict[str, int]:
    """How many ledger rows have which error code."""
    database = sqlite3.connect(daemon.state_dir / "ledger.sqlite3")
    rows = database.execute("SELECT error_code, count(*) FROM requests GROUP BY 1").fetchall()
    database.close()
    return dict(rows)


def test_sigkill_loses_no_row_of_a_request_whose_done_was_seen(folder: Path) -> None:
    seen: set[str] = set()
    with running_daemon(*smollm2_argument(), folder=folder) as daemon:
        daemon.wait_ready()

        def ask() -> None:
            with (
                contextlib.suppress(OpenclawError),
                Client(socket_path=str(daemon.socket), retries=0) as client,
            ):
                while True:
                    seen.add(client.generate("a", max_tokens=2).request_id)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(seen) >= 20, what="twenty answers")
        daemon.kill()
        for thread in threads:
            thread.join(30)
    with running_daemon(folder=folder) as again:
        again.wait_ready()
        database = sqlite3.connect(again.state_dir / "ledger.sqlite3")
        rows = database.execute("SELECT request_id, state, counts FROM requests").fetchall()
        database.close()
    recorded = {row[0] for row in rows if row[1:] == ("done", "exact")}
    assert seen <= recorded
    left_open = [row for row in rows if row[1] == "open"]
    assert not left_open
    assert all(row[2] == "estimated" for row in rows if row[1] == "failed")


def test_a_killed_daemon_can_be_started_again_on_the_same_socket(folder: Path) -> None:
    with running_daemon(folder=folder) as daemon:
        daemon.wait_ready()
        daemon.kill()
        assert daemon.socket.exists()
    with running_daemon(folder=folder) as again:
        again.wait_ready()


def test_check_config_says_file_line_and_key(folder: Path) -> None:
    config = folder / "bad.yaml"
    config.write_text("models:\n  m:\n    path: x.gguf\n    paralel: 4\n")
    check = try_to_start("--check-config", "--config", str(config))
    assert check.returncode == 78
    assert f"{config}:4" in check.stderr
    assert "did you mean 'parallel'" in check.stderr
    config.write_text("models: {m: {path: x.gguf}}\n")
    assert try_to_start("--check-config", "--config", str(config)).returncode == 0


def test_an_option_is_taken_only_as_it_is_spelt() -> None:
    start = try_to_start("--model", "m=/x.gguf")
    assert start.returncode == 2
    assert "unrecognized arguments: --model m=/x.gguf; did you mean --models?" in start.stderr


def test_no_folder_is_made_for_a_socket_in_an_unusual_place(folder: Path) -> None:
    start = try_to_start("--socket", f"{folder}/none/s", "--state-dir", f"{folder}/state")
    assert start.returncode == 1
    assert f"there is no folder {folder}/none for the socket s: correct --socket" in start.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("environ", [{}, {"RUNTIME_DIRECTORY": "run"}])
def test_the_folder_of_a_socket_in_a_usual_place_is_made(
    folder: Path, environ: dict[str, str]
) -> None:
    """Which is the state directory, or what systemd gives."""
    place = folder / environ.get("RUNTIME_DIRECTORY", "state")
    environ = {name: str(folder / value) for name, value in environ.items()}
    socket_path = str(place / "s")
    with running_daemon("--socket", socket_path, folder=folder, environ=environ) as daemon:
        daemon.wait_ready()
        with Client(socket_path=socket_path) as client:
            assert client.ping()


def test_the_start_says_which_file_is_missing_and_what_to_do(folder: Path) -> None:
    with running_daemon("--models", "a=/nope.gguf", folder=folder) as daemon:
        log = daemon.wait_ready().log()
        assert "model a: there is no file /nope.gguf; put it there, or correct its path" in log


def test_a_port_is_refused_with_a_sentence() -> None:
    start = try_to_start("--port", "8080")
    assert start.returncode == 2
    assert "HTTP comes with the gateway" in start.stderr


def test_requests_of_a_worker_that_hangs_are_ended_by_the_drain(folder: Path) -> None:
    config = folder / "c.yaml"
    model = f"{{path: {smollm2_path()}, preload: true}}"
    config.write_text(f"models: {{m: {model}}}\nresource_limits: {{drain_timeout: 100ms}}\n")
    with running_daemon("--config", str(config), folder=folder) as daemon:
        daemon.wait_ready()
        (worker,) = daemon.workers()
        with RawClient(daemon.socket) as raw:
            raw.request(1, "generate", prompt="Count:", max_tokens=1000, stream=True)
            raw.next_of(Delta)
            worker.suspend()
            daemon.process.send_signal(signal.SIGTERM)
            assert raw.next_of(Error, 1).code == "shutting-down"
        assert daemon.process.wait(30) == 0


def test_more_signals_after_the_drain_do_no_harm(own_daemon: Daemon) -> None:
    """The drain is over at once; the worker, which is stopped, takes seconds."""
    (worker,) = own_daemon.workers()
    worker.suspend()
    own_daemon.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "stopping" in own_daemon.log(), what="the drain")
    wait_until(lambda: "unloading on request" in own_daemon.log(), what="the end of the drain")
    own_daemon.process.send_signal(signal.SIGTERM)
    assert own_daemon.process.wait(30) == 0
    assert "Traceback" not in own_daemon.log()


def test_without_the_extra_daemon_it_says_what_to_install() -> None:
    program = "import runpy, sys; sys.modules['pydantic'] = None; runpy.run_module('openclawd')"
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1
    assert "pip install 'openclawd[daemon]'" in answer.stderr


def test_who_has_just_connected_when_it_stops_is_told_to_come_again(folder: Path) -> None:
    with running_daemon(folder=folder) as daemon:
        daemon.wait_ready()
        with RawClient(daemon.socket, hello=False) as silent, RawClient(daemon.socket) as raw:
            raw.request(1, "ping")
            raw.next_of(Done)  # so the first one is connected, too
            assert daemon.terminate() == 0
            refusal = silent.next_of(Error)
            assert (refusal.id, refusal.code) == (None, "shutting-down")
            assert refusal.retry_after_s
