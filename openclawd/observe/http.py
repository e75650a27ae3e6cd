"""The least of HTTP/1.1 that Prometheus, curl and a load balancer need: GET and HEAD, one request
for each connection. No network: the socket is a Unix one.

Owns one connection and its limits. Whatever a client sends, it gets one answer of bounded size or
is cut off in bounded time, and costs nobody else anything.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

MAX_HEAD_BYTES: Final = 8 * 1024
"""Prometheus sends some 300 bytes."""

MAX_CONNECTIONS: Final = 16
"""At once. Each may cost one answer; a monitoring system needs one or two."""

TIMEOUT_S: Final = 10.0
"""For a whole connection, from its beginning to the last byte of the answer: Prometheus' own."""

TEXT: Final = "text/plain; charset=utf-8"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes
    content_type: str = TEXT


Routes = Mapping[str, Callable[[], Response]]
"""What answers each path, at once."""

_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class HttpServer:
    """The connections of one listening socket. Use `connect` as the protocol's factory."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._connections: set[_Connection] = set()

    def connect(self) -> asyncio.Protocol:
        return _Connection(self._answer, self._connections)

    def close(self) -> None:
        """Cut off whoever is connected."""
        for connection in list(self._connections):
            connection.abort()

    def _answer(self, head: bytes) -> tuple[Response, bool]:
        """What a request's head is answered with, and whether the body is wanted."""
        parts = head.split(b"\r\n", 1)[0].split(b" ")
        if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):
            return _error(400), True
        method, target = parts[0], parts[1].partition(b"?")[0].decode("latin-1")
        if method not in (b"GET", b"HEAD"):
            return _error(405), True
        route = self._routes.get(target)
        return (route() if route else _error(404)), method == b"GET"


class _Connection(asyncio.Protocol):
    def __init__(
        self, answer: Callable[[bytes], tuple[Response, bool]], all_of_them: set[_Connection]
    ) -> None:
        self._answer = answer
        self._all = all_of_them
        self._head = bytearray()
        self._is_answered = False
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle

    def abort(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(TIMEOUT_S, self._time_out)
        self._all.add(self)
        if len(self._all) > MAX_CONNECTIONS:
            self._send(_error(503), has_body=True)

    def data_received(self, data: bytes) -> None:
        if self._is_answered:
            return  # a body, or a second request: neither is wanted
        self._head += data
        end = self._head.find(b"\r\n\r\n", max(0, len(self._head) - len(data) - 3))
        if end >= 0 and end <= MAX_HEAD_BYTES:
            self._respond(bytes(self._head[:end]))
        elif len(self._head) > MAX_HEAD_BYTES:
            self._send(_error(431), has_body=True)

    def eof_received(self) -> bool:
        """A client may close its side after its request, and still read."""
        return self._is_answered

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # how it went away makes no difference
        self._timer.cancel()
        self._all.discard(self)

    def _respond(self, head: bytes) -> None:
        try:
            response, has_body = self._answer(head)
        except Exception:
            logger.exception("a request for metrics failed on a bug")
            response, has_body = _error(500), True
        self._send(response, has_body=has_body)

    def _send(self, response: Response, *, has_body: bool) -> None:
        self._is_answered = True
        self._head.clear()
        head = (
            f"HTTP/1.1 {response.status} {_REASONS[response.status]}\r\n"
            f"Content-Type: {response.content_type}\r\n"
            f"Content-Length: {len(response.body)}\r\n"
            "Cache-Control: no-store\r\nConnection: close\r\n"
        )
        allow = "Allow: GET, HEAD\r\n" if response.status == 405 else ""
        body = response.body if has_body else b""
        self._transport.write(f"{head}{allow}\r\n".encode("latin-1") + body)
        self._transport.close()

    def _time_out(self) -> None:
        if self._is_answered:
            self._transport.abort()  # it does not read
        else:
            self._send(_error(408), has_body=True)
            self._transport.abort()


def _error(status: int) -> Response:
    return Response(status, f"{status} {_REASONS[status]}\n".encode())
