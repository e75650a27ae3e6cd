"""The helper as a process: commands, webhooks, what hangs, what fails, how it ends."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from harness import wait_until
from notify.conftest import FACTS

if TYPE_CHECKING:
    from pathlib import Path


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def test_a_command_gets_the_facts_in_its_environment(helper: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = f"env | grep ^OPENCLAW_ | sort > {shlex.quote(str(out))}"
    helper.send(command=shell(script), prompt="secret", budget="a; b $(c)\nd")
    helper.read_log_until("was delivered")
    assert out.read_text().splitlines() == [
        "OPENCLAW_BUDGET=a; b $(c)",  # env prints its second line without a name
        "OPENCLAW_LIMIT=1000",
        "OPENCLAW_PRINCIPAL=user:alice",
        "OPENCLAW_RESET_AT=1700000000",
        "OPENCLAW_SHARE=0.8",
        "OPENCLAW_USED=800",
        "OPENCLAW_WINDOW=month",
    ]


def test_arguments_are_what_they_are(helper: Any, tmp_path: Path) -> None:
    odd = "$(touch no); \"x'"
    out = tmp_path / "out"
    program = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"
    helper.send(command=[sys.executable, "-c", program, str(out), odd])
    helper.read_log_until("was delivered")
    assert out.read_text() == odd


def test_a_command_that_hangs_is_killed_with_its_group(helper: Any, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    os.mkfifo(pids)
    script = f"sleep 600 & echo $$ $! > {shlex.quote(str(pids))}; wait"
    helper.send(command=shell(script), timeout_s=0.5, retries=0)
    shell_pid, sleep_pid = map(int, pids.read_text().split())
    log = helper.read_log_until("failed for good")
    assert "it ran for more than 0.5 s" in log
    assert not psutil.pid_exists(shell_pid)
    wait_until(lambda: not is_running(sleep_pid), what="the end of what it had started")


def is_running(pid: int) -> bool:
    """Nobody may be there to take the exit status of a grandchild."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_command_that_fails_is_tried_again_and_given_up(helper: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    helper.send(command=shell(f"echo x >> {shlex.quote(str(out))}; exit 3"), retries=2)
    log = helper.read_log_until("failed for good")
    assert log.count("it ended with exit status 3") == 3
    assert out.read_text() == "x\n" * 3


def test_a_program_that_is_not_there_is_not_tried_again(helper: Any) -> None:
    helper.send(command=["/none/such"])
    log = helper.read_log_until("failed for good")
    assert log.count("/none/such") == 1
    assert "cannot be started: No such file or directory" in log


def test_a_webhook_that_answers_500_twice(helper: Any, web: Any) -> None:
    server = web()
    server.statuses = [500, 503]
    helper.send(webhook=f"{server.url}/hook/secret?token=t", prompt="text of a user")
    log = helper.read_log_until("was delivered")
    assert server.posts == [("/hook/secret?token=t", FACTS, "application/json")] * 3
    assert log.count("failed and is tried again: it answered 50") == 2
    assert "secret" not in log
    assert "http://127.0.0.1/…" in log


@pytest.mark.parametrize("status", [404, 302])
def test_an_answer_that_will_stay_the_same_is_final(helper: Any, web: Any, status: int) -> None:
    server = web()
    server.statuses = [status]
    helper.send(webhook=server.url)
    assert f"failed for good: it answered {status}" in helper.read_log_until("failed for good")
    assert len(server.posts) == 1


def test_an_answer_that_never_ends_is_cut(helper: Any, web: Any) -> None:
    """Each piece comes in time; the whole does not."""
    ended = []

    def drip(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        handler.connection.settimeout(0.02)
        while True:
            handler.wfile.write(b"X: y\r\n")
            try:
                ended.append(handler.connection.recv(1))
            except TimeoutError:
                continue
            return

    server = web(drip)
    helper.send(webhook=server.url, timeout_s=0.3, retries=0)
    log = helper.read_log_until("failed for good")
    assert "it did not answer within 0.3 s" in log
    wait_until(lambda: ended == [b""], what="the end of the connection")


def test_a_certificate_that_nobody_signed_is_refused(helper: Any, web: Any) -> None:
    """The server speaks no TLS at all, which fails in the same place."""
    server = web()
    helper.send(webhook=server.url.replace("http:", "https:"), retries=0)
    assert "it cannot be reached: " in helper.read_log_until("failed for good")
    assert server.posts == []


def test_one_receiver_does_not_hold_up_another(helper: Any, web: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    helper.send(command=shell(f"read x < {shlex.quote(str(gate))}"), webhook=web().url)
    assert "by command" not in helper.read_log_until("by webhook http://127.0.0.1/… was delivered")
    gate.write_text("go\n")
    helper.read_log_until("by command '/bin/sh' was delivered")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff", "not JSON"),
        (b"[1]", "not a map"),
        (b"[" * 5000, "not JSON"),
        (b"{}", "'timeout_s' is no number"),
        (b'{"timeout_s": 1, "retries": 99}', "'retries' is no number from 0 to 10"),
        (b'{"timeout_s": 1, "retries": 0, "command": "rm -rf"}', "'command' is no list"),
        (b'{"timeout_s": 1, "retries": 0, "command": ["a\\u0000"]}', "holds a NUL"),
        (b'{"timeout_s": 1, "retries": 0, "webhook": 1}', "'webhook' is no text"),
    ],
)
def test_what_is_no_alert_is_told_and_passed_over(helper: Any, data: bytes, reason: str) -> None:
    helper.socket.send(data)
    helper.send(command=["/bin/true"])
    assert reason in helper.read_log_until("was delivered")


def test_it_ends_with_the_daemon_after_what_runs_and_makes_no_more_tries(
    helper: Any, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    os.mkfifo(started)
    helper.send(command=shell(f"echo x > {shlex.quote(str(started))}; exit 1"), timeout_s=30)
    helper.send(command=["/bin/sh", "-c", "exit 0"])
    started.read_text()
    helper.end()


AS_SYSTEMD_DOES = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, "-m", "openclawd.notify"])
"""


def test_a_socket_of_systemds(tmp_path: Path, folder: Path) -> None:
    """`LISTEN_FDS`: descriptor 3, for this process alone."""
    out = tmp_path / "out"
    path = folder / "notify.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        process = subprocess.Popen(
            [sys.executable, "-c", AS_SYSTEMD_DOES, str(listener.fileno())],
            pass_fds=[listener.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(path))
        sender.send(b"")  # no end: a datagram may be empty
        script = f"echo $OPENCLAW_BUDGET > {shlex.quote(str(out))}"
        message = {"budget": "b", "timeout_s": 20, "retries": 0, "command": shell(script)}
        sender.send(json.dumps(message).encode())
    assert process.stderr is not None
    with process:
        lines = [process.stderr.readline() for _ in range(2)]
        process.terminate()
    assert "a message of 0 bytes is no alert" in lines[0]
    assert "was delivered" in lines[1]
    assert out.read_text() == "b\n"
    assert process.returncode == 0


def test_without_a_socket_it_says_so() -> None:
    command = [sys.executable, "-m", "openclawd.notify"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "no socket was passed: enable openclawd-notify.socket" in answer.stderr
