"""The worker's end of its link to the daemon: framed messages over one socket.

Owns the socket. Any thread may send; one thread receives. Knows no order of messages.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from openclawctl.wire.framing import FrameReader, encode_frame
from openclawd.worker.messages import (
    FROM_WORKER_FRAME_BYTES,
    TO_WORKER_FRAME_BYTES,
    FromWorker,
    ToWorker,
    decode_to_worker,
    encode,
)

if TYPE_CHECKING:
    import socket

_READ_BYTES: Final = 256 * 1024


class DaemonGone(Exception):
    """The other end is closed. There is nobody left to work for."""


class Pipe:
    """Messages to and from the daemon. Blocks."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = FrameReader(max_bytes=TO_WORKER_FRAME_BYTES)
        self._send_lock = threading.Lock()

    def receive(self) -> ToWorker:
        """The next message. Raises `DaemonGone`, or `RemoteProtocolError` for a bug there."""
        while (payload := self._reader.next_payload()) is None:
            try:
                data = self._connection.recv(_READ_BYTES)
            except ConnectionError:
                data = b""
            if not data:
                raise DaemonGone
            self._reader.feed(data)
        return decode_to_worker(payload)

    def send(self, message: FromWorker) -> None:
        """Send one message. Raises `DaemonGone`, or `LocalProtocolError` if it is too large."""
        frame = encode_frame(encode(message), max_bytes=FROM_WORKER_FRAME_BYTES)
        with self._send_lock:
            try:
                self._connection.sendall(frame)
            except OSError:
                raise DaemonGone from None
