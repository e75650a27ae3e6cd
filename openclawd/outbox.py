"""What one turn of the event loop has for one connection goes out in one `send`.

Owns the bytes from when they are put here to when the transport has them. A `send` costs more than
all else that is done for a small frame, and wakes whoever reads: with one for each frame, a request
of a burst took twice the time of daemon and client (docs/performance.md, "Torch models").
"""

from __future__ import annotations

import asyncio
from typing import Final

FLUSH_BYTES: Final = 64 * 1024
"""From here on a `send` costs what the bytes cost, and the transport is to say whether the other
end still reads."""


class Outbox:
    """Of one transport. Nothing is sent once that is closing."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._frames: list[bytes] = []
        self._num_bytes = 0

    @property
    def num_unsent_bytes(self) -> int:
        """With those that the transport has and the other end does not read."""
        return self._num_bytes + self._transport.get_write_buffer_size()

    def put(self, frame: bytes) -> None:
        """Send it after what was put before, at the latest when the loop's turn is over."""
        if not self._frames:
            self._loop.call_soon(self.flush)
        self._frames.append(frame)
        self._num_bytes += len(frame)
        if self._num_bytes >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send now."""
        frames, self._frames, self._num_bytes = self._frames, [], 0
        if frames and not self._transport.is_closing():
            self._transport.write(b"".join(frames) if len(frames) > 1 else frames[0])

    def close(self) -> None:
        """Close the transport once all is sent."""
        self.flush()
        self._transport.close()
