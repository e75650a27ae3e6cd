"""A scripted daemon: a real Unix socket, the real server side of the wire, and a script that says
what to answer. The declared seam is the byte stream; everything above it is the project's own.

A script is a function of one accepted connection; it runs in a thread of its own.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from openclawctl.wire.connection import Connection, Role
from openclawctl.wire.errors import RemoteProtocolError
from openclawctl.wire.messages import (
    Cancel,
    Delta,
    Done,
    Error,
    Event,
    Hello,
    Message,
    Request,
    Welcome,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from openclawctl.wire.errors import Problem

TIMEOUT_S = 20.0


class PeerConnection:
    """The daemon's end of one connection."""

    def __init__(self, sock: socket.socket, received: list[Message]) -> None:
        self.sock = sock
        self.wire = Connection(Role.SERVER)
        self._received = received
        self._inbox: deque[Message] = deque()

    def next(self) -> Message | None:
        """The next message, or None when the client has closed."""
        while not self._inbox:
            self._inbox.extend(self._take())
            if self._inbox:
                break
            data = self.sock.recv(65536)
            if not data:
                return None
            self.wire.receive(data)
        message = self._inbox.popleft()
        self._received.append(message)
        return message

    def _take(self) -> list[Message]:
        message = self.wire._next_event()
        return [] if message is None else [message]

    def greet(self) -> Hello:
        hello = self.next()
        assert isinstance(hello, Hello)
        self.send(Welcome(1, "openclawd 9.9", "user:test"))
        return hello

    def request(self) -> Request | None:
        """The next request; cancels of ended requests are passed over."""
        while (message := self.next()) is not None:
            if isinstance(message, Request):
                return message
        return None

    def cancel(self) -> Cancel:
        message = self.next()
        assert isinstance(message, Cancel), message
        return message

    def send(self, *messages: Message) -> None:
        self.sock.sendall(b"".join(self.wire.send(message) for message in messages))

    def raw(self, data: bytes) -> None:
        self.sock.sendall(data)

    def event(self, request: Request, kind: str, **data: Any) -> None:
        self.send(Event(request.id, kind, data))

    def delta(self, request: Request, text: str, *, index: int = 0) -> None:
        self.send(Delta(request.id, index, text, [7]))

    def done(self, request: Request, **result: Any) -> None:
        self.send(Done(request.id, result))

    def error(self, request: Request | None, problem: Problem) -> None:
        self.send(Error.from_problem(request.id if request else None, problem))

    def complete(self, request: Request, *pieces: str, finish_reason: str = "stop") -> None:
        """Stream the pieces if that was asked for, then end with the whole."""
        if request.params.get("stream"):
            for piece in pieces:
                self.delta(request, piece)
        text = "".join(pieces)
        self.done(request, **result(text, op=request.op, finish_reason=finish_reason))


class Peer:
    """Listens at `path` and runs `script` for each connection. Use as a context manager."""

    def __init__(self, path: Path, script: Callable[[PeerConnection], None]) -> None:
        self.path = path
        self.received: list[Message] = []
        self.num_connections = 0
        self._script = script
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._failures: list[BaseException] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(64)

    @property
    def requests(self) -> list[Request]:
        return [message for message in self.received if isinstance(message, Request)]

    def __enter__(self) -> Peer:
        self._start(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):  # closed by the script
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive(), "the scripted daemon is stuck"
        for sock in (self._listener, *self._sockets):
            sock.close()
        self.path.unlink(missing_ok=True)
        if self._failures and exc[0] is None:
            raise self._failures[0]

    def join(self) -> None:
        """Wait until the newest connection's script has ended."""
        self._threads[-1].join(TIMEOUT_S)

    def _start(self, function: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=function, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(TIMEOUT_S)
            self._sockets.append(sock)
            self.num_connections += 1
            self._start(self._run, sock)

    def _run(self, sock: socket.socket) -> None:
        try:
            # A client that leaves is no failure here: what a test makes of that is its own matter.
            with contextlib.suppress(OSError, RemoteProtocolError):
                self._script(PeerConnection(sock, self.received))
        except BaseException as error:
            self._failures.append(error)
        finally:
            sock.close()


def answering(handler: Callable[[PeerConnection, Request], None]) -> Callable[..., None]:
    """A script that greets and gives every request to `handler`."""

    def script(connection: PeerConnection) -> None:
        connection.greet()
        while (request := connection.request()) is not None:
            handler(connection, request)

    return script


def result(
    text: str, *, op: str = "generate", finish_reason: str = "stop", **changes: Any
) -> dict[str, Any]:
    """What `done` carries for an inference request."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason}
    if op == "chat":
        choice["message"] = {"role": "assistant", "content": text}
    else:
        choice["text"] = text
    return {
        "request_id": "0192-test",
        "model": "smollm2",
        "choices": [] if op == "embed" else [choice],
        "usage": {
            "prompt_tokens": 5,
            "cached_tokens": 2,
            "completion_tokens": 3,
            "counts": "exact",
        },
        "timings": {"load_s": 0.0, "queue_s": 0.001, "ttft_s": 0.02, "total_s": 0.1},
        "context": {"policy": "reject"},
        **changes,
    }


def vector(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)
