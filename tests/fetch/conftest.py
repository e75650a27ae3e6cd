"""A real helper process at the other end of a socket, and a hub to fetch from."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from fetch.server import Behaviour, Hub

from openclawctl.wire.errors import Problem
from openclawd.fetch.messages import decode_request
from openclawd.fetch.service import Service, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Helper:
    """`python -m openclawd.fetch` with one request."""

    def __init__(self, folder: Path, *options: str, **request: Any) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(60)
        command = [sys.executable, "-m", "openclawd.fetch", "--fd", str(theirs.fileno())]
        command += ["--models-dir", str(folder), "--allow-loopback-http", "--first-pause", "0.01"]
        with theirs:
            self.process = subprocess.Popen(
                [*command, *options], pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True
            )
        self.socket.send(json.dumps(request).encode())
        self.progress: list[dict[str, Any]] = []

    def read(self) -> dict[str, Any]:
        """The reply that ends it; none if it was killed."""
        while data := self._receive():
            message: dict[str, Any] = json.loads(data)
            if message["type"] != "progress":
                return message
            self.progress.append(message)
        return {}

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(65536)
        except ConnectionResetError:  # it was killed with something unread
            return b""

    def end(self) -> str:
        self.socket.close()
        if self.process.stderr is None or self.process.stderr.closed:
            return ""
        _, log = self.process.communicate(timeout=30)
        return str(log)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Helper]]:
    """`start(type=…)` starts a helper on the folder `models`; ended after the test."""
    running: list[Helper] = []

    def run(*options: str, **request: Any) -> Helper:
        running.append(Helper(tmp_path / "models", *options, **request))
        return running[-1]

    yield run
    for each in running:
        if each.process.poll() is None:
            each.process.kill()
        each.end()


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`ask(type=…)` serves one request on the folder `models`, in this process; gives the reply
    that would be sent. Keywords of `Settings` go into `settings`."""

    def run(settings: dict[str, Any] | None = None, **request: Any) -> dict[str, Any]:
        given = {"allows_loopback_http": True, "first_pause_s": 0.01, **(settings or {})}
        service = Service(Settings(tmp_path / "models", **given), lambda *progress: None)
        try:
            result = service.serve(decode_request(json.dumps(request).encode()))
        except Problem as problem:
            return {"type": "error", **problem.as_dict()}
        return {"type": "done", "result": result}

    return run


@pytest.fixture
def hub() -> Iterator[Callable[..., Hub]]:
    """`hub(files)` starts one; closed after the test. With a `certificate` it speaks TLS."""
    running: list[Hub] = []

    def start(files: dict[str, bytes], *, certificate: Path | None = None, **behaviour: Any) -> Hub:
        running.append(Hub(files, Behaviour(**behaviour), certificate=certificate))
        return running[-1]

    yield start
    for each in running:
        each.close()
