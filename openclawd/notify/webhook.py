"""An alert told by a webhook: one POST with the facts as JSON. The only module of openclawd's
daemon side that opens a network connection.

Certificates are verified. Redirects are not followed, proxies not used: the address is meant.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import ssl
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit

from openclawd import __version__
from openclawd.notify.delivery import Failed

if TYPE_CHECKING:
    from openclawd.notify.messages import Alert

_WORTH_ANOTHER_TRY: Final = (408, 425, 429)
"""Of 4xx, what may pass (RFC 9110, RFC 8470, RFC 6585); any 5xx may."""


async def post_webhook(alert: Alert) -> None:
    """Post it once, at most `timeout_s`. Raises `Failed`."""
    post = _Post(alert)
    timer = asyncio.get_running_loop().call_later(alert.timeout_s, post.abort)
    try:
        status = await asyncio.to_thread(post.send)
    finally:
        timer.cancel()
    if not 200 <= status < 300:
        is_final = status < 500 and status not in _WORTH_ANOTHER_TRY
        raise Failed(f"it answered {status}", is_final=is_final)


def shown(url: str) -> str:
    """What may be logged of an address: paths and queries of webhooks are often secrets."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(unreadable)"
    return f"{parts.scheme}://{parts.hostname or ''}/…"


class _Post:
    """One request. `send` runs on a thread, `abort` on the loop."""

    def __init__(self, alert: Alert) -> None:
        self._alert = alert
        self._is_aborted = False
        self._connection: http.client.HTTPConnection | None = None

    def send(self) -> int:
        """The status of the answer; its body is not read. Raises `Failed`."""
        assert self._alert.webhook is not None
        try:
            url = urlsplit(self._alert.webhook)
            self._connection = _connection(url, self._alert.timeout_s)
        except ValueError:
            raise Failed("its address is none", is_final=True) from None
        with contextlib.closing(self._connection):
            try:
                return self._exchange(self._connection, url)
            except (OSError, http.client.HTTPException) as error:
                raise Failed(self._story(error)) from None

    def abort(self) -> None:
        """Time is up, however slowly the other side still sends."""
        self._is_aborted = True
        sock = None if self._connection is None else self._connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _exchange(self, connection: http.client.HTTPConnection, url: SplitResult) -> int:
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        headers = {"Content-Type": "application/json", "User-Agent": f"openclawd/{__version__}"}
        connection.request("POST", target, json.dumps(self._alert.facts).encode(), headers)
        status = connection.getresponse().status
        if self._is_aborted:  # http.client takes the cut for the end of the headers
            raise TimeoutError
        return status

    def _story(self, error: Exception) -> str:
        if self._is_aborted or isinstance(error, TimeoutError):
            return f"it did not answer within {self._alert.timeout_s:g} s"
        reason = getattr(error, "strerror", None) or type(error).__name__
        return f"it cannot be reached: {reason}"


def _connection(url: SplitResult, timeout_s: float) -> http.client.HTTPConnection:
    """Not connected yet. Raises `ValueError`."""
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("no address of the web")
    if url.scheme == "http":
        return http.client.HTTPConnection(url.hostname, url.port, timeout=timeout_s)
    context = ssl.create_default_context()
    return http.client.HTTPSConnection(url.hostname, url.port, timeout=timeout_s, context=context)
