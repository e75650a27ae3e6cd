"""A socket that systemd passes on outlives the daemon: nobody is refused while it restarts."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from typing import IO, TYPE_CHECKING

import pytest
from harness import running_daemon

from openclawctl import Client

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AS_SYSTEMD_DOES = """
import os, sys
descriptors = [int(number) for number in sys.argv[1].split(",") if number]
for number, descriptor in enumerate(descriptors):
    os.dup2(descriptor, 3 + number)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(descriptors) or 1)}
os.execv(sys.executable, [sys.executable, "-m", "openclawd", *sys.argv[2:]])
"""


def activated(folder: Path, *sockets: socket.socket | IO[str]) -> subprocess.Popen[bytes]:
    """A daemon that is given these sockets, and told of one where there is none. Those of a process
    that runs tests are above 3."""
    descriptors = [sock.fileno() for sock in sockets]
    passed = ",".join(map(str, descriptors))
    return subprocess.Popen(
        [sys.executable, "-c", AS_SYSTEMD_DOES, passed, "--state-dir", str(folder / "state")],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=descriptors,
    )


@pytest.fixture
def listener(folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "s"))
        sock.listen(128)
        yield sock


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=40)
    assert process.returncode == 0, errors.decode()


def test_who_connects_between_two_daemons_waits_for_the_second(
    folder: Path, listener: socket.socket
) -> None:
    path = folder / "s"
    first = activated(folder, listener)
    with Client(socket_path=str(path), retries=0) as client:
        assert client.status()["server"]["socket"] == str(path)
    end(first)
    assert path.is_socket()

    answers = []

    def ask() -> None:
        with Client(socket_path=str(path), retries=0) as client:
            answers.append(client.status()["server"]["pid"])

    askers = [threading.Thread(target=ask) for _ in range(8)]
    for asker in askers:
        asker.start()
    second = activated(folder, listener)
    for asker in askers:
        asker.join()
    assert answers == [second.pid] * 8
    end(second)


@pytest.mark.parametrize("what", ["abstract", "file", "more than there are"])
def test_what_is_no_socket_with_a_path_is_refused_with_a_remedy(folder: Path, what: str) -> None:
    with contextlib.ExitStack() as stack:
        if what == "abstract":
            other = stack.enter_context(socket.socket(socket.AF_UNIX))
            other.bind(f"\0openclawd-{folder.name}")
            other.listen()
        elif what == "file":
            other = stack.enter_context((folder / "file").open("w"))
        process = activated(folder, *([] if what == "more than there are" else [other]))
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert b"Traceback" not in errors
    assert b"what systemd passed on is no socket" in errors or b"an abstract one" in errors
    assert b"its unit needs one ListenStream=, with a path, and Accept=no" in errors


@pytest.mark.parametrize("what", ["two", "datagram", "not listening"])
def test_other_sockets_are_refused(folder: Path, listener: socket.socket, what: str) -> None:
    kind = socket.SOCK_DGRAM if what == "datagram" else socket.SOCK_STREAM
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
        process = activated(folder, *([listener] if what == "two" else []), other)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert b"systemd passed on" in errors


def test_what_was_passed_to_another_process_is_not_taken(folder: Path) -> None:
    with running_daemon(folder=folder, environ={"LISTEN_PID": "1", "LISTEN_FDS": "1"}) as daemon:
        daemon.wait_ready()
        with Client(socket_path=str(daemon.socket)) as client:
            assert client.ping()
        assert daemon.terminate() == 0
    assert not daemon.socket.exists()
