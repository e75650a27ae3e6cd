"""Passes what a client sends to the daemon's socket, and what comes back to the client.

Owns the limits of one connection and of all of them: so many at once, so many bytes of a request,
so long. What is in the bytes is the daemon's to judge.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

MAX_CONNECTIONS: Final = 16
"""At once; the daemon takes as many. More are closed at once."""

MAX_REQUEST_BYTES: Final = 16 * 1024
"""Twice what the daemon takes."""

TIMEOUT_S: Final = 15.0
"""For one connection: the daemon cuts it off after 10."""

_PIECE_BYTES: Final = 64 * 1024
_AWAY: Final = b"openclawd cannot be reached: see `systemctl status openclawd`\n"

logger = logging.getLogger("openclawd.metrics")


class Relay:
    """Serves connections; `path` is the daemon's metrics socket."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_open = 0
        self._was_away = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection from its beginning to its end. Never raises but for its own end."""
        if self._num_open >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._num_open += 1
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._relay(reader, writer)
        except* (OSError, TimeoutError):
            writer.transport.abort()  # either end went away, or took too long
        finally:
            self._num_open -= 1
            writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer, request = await asyncio.open_unix_connection(self._path)
        except OSError as error:
            self._note_away(error)
            writer.write(_answer_away())
            await writer.drain()
            return
        self._was_away = False
        try:
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(_pass_request(reader, request))
                while piece := await answer.read(_PIECE_BYTES):
                    writer.write(piece)
                    await writer.drain()
                sending.cancel()
        finally:
            request.close()

    def _note_away(self, error: OSError) -> None:
        """Once, not at each scrape."""
        if not self._was_away:
            logger.warning("%s: %s; is openclawd running?", self._path, error.strerror)
        self._was_away = True


async def _pass_request(reader: asyncio.StreamReader, request: asyncio.StreamWriter) -> None:
    """No more than a request may have; the daemon answers after its head, whatever follows."""
    left = MAX_REQUEST_BYTES
    with contextlib.suppress(OSError):  # it may answer, and close, before it has read all
        while left and (piece := await reader.read(left)):
            left -= len(piece)
            request.write(piece)
            await request.drain()


def _answer_away() -> bytes:
    head = (
        "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(_AWAY)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + _AWAY
