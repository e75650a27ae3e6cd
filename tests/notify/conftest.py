"""A real helper process at the other end of a socket, and a real web server."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FACTS = {
    "budget": "research",
    "principal": "user:alice",
    "window": "month",
    "share": 0.8,
    "used": 800,
    "limit": 1000,
    "reset_at": 1_700_000_000,
}


class Helper:
    """`python -m openclawd.notify` and our end of its socket."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "openclawd.notify", "--fd", str(theirs.fileno())]
        with theirs:
            self.process = subprocess.Popen(
                [*command, "--first-retry", "0.01"],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                text=True,
            )

    def send(self, **message: Any) -> None:
        whole = {**FACTS, "timeout_s": 20, "retries": 3, **message}
        self.socket.send(json.dumps(whole).encode())

    def read_log_until(self, text: str) -> str:
        """Wait for a line; all lines up to it."""
        assert self.process.stderr is not None
        lines = ""
        for line in self.process.stderr:
            lines += line
            if text in line:
                return lines
        raise AssertionError(f"no {text!r} in:\n{lines}")

    def end(self) -> str:
        """Close our end and wait; the rest of the log."""
        self.socket.close()
        _, log = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, log
        return str(log)


@pytest.fixture
def helper() -> Iterator[Helper]:
    running = Helper()
    yield running
    running.socket.close()
    if running.process.poll() is None:
        running.process.kill()
    running.process.communicate()


class Web:
    """A server on 127.0.0.1 that answers each POST with the next of its statuses, then 200."""

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], object] | None = None) -> None:
        self.statuses: list[int] = []
        self.posts: list[tuple[str, dict[str, Any], str | None]] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                web.posts.append((self.path, body, self.headers["Content-Type"]))
                if answer is not None:
                    with contextlib.suppress(OSError):  # the helper has left
                        answer(self)
                    return
                self.send_response(web.statuses.pop(0) if web.statuses else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def web() -> Iterator[Callable[..., Web]]:
    """`web()` starts a server; closed after the test."""
    running: list[Web] = []

    def start(answer: Callable[[BaseHTTPRequestHandler], object] | None = None) -> Web:
        running.append(Web(answer))
        return running[-1]

    yield start
    for each in running:
        each.close()
