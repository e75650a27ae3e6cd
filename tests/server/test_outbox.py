"""What one turn of the loop has for one connection goes out at once."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from openclawd.outbox import FLUSH_BYTES, Outbox

if TYPE_CHECKING:
    from collections.abc import Callable


def _received(use: Callable[[Outbox], object]) -> list[bytes]:
    """What comes at the other end of a socket that keeps what one `send` sent together."""

    async def main() -> list[bytes]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            transport, _ = await asyncio.get_running_loop().create_connection(
                asyncio.Protocol, sock=_as_stream(ours)
            )
            outbox = Outbox(transport)
            use(outbox)
            await asyncio.sleep(0)
            transport.close()
            await asyncio.sleep(0)
            return list(iter(lambda: theirs.recv(2 * FLUSH_BYTES), b""))

    return asyncio.run(main())


def _as_stream(sock: socket.socket) -> socket.socket:
    """asyncio takes no other kind, by what Python believes it to be."""
    return socket.socket(sock.family, socket.SOCK_STREAM, fileno=sock.detach())


def test_frames_of_one_turn_are_sent_together_and_in_order() -> None:
    assert _received(lambda outbox: [outbox.put(b"one "), outbox.put(b"two")]) == [b"one two"]


def test_what_is_flushed_is_not_sent_again() -> None:
    def use(outbox: Outbox) -> None:
        outbox.put(b"one")
        outbox.flush()
        outbox.put(b"two")

    assert _received(use) == [b"one", b"two"]


def test_a_lot_does_not_wait_for_the_turn_to_end() -> None:
    seen: list[int] = []

    def use(outbox: Outbox) -> None:
        outbox.put(b"x" * FLUSH_BYTES)
        seen.append(outbox.num_unsent_bytes)
        outbox.put(b"y")

    assert [len(part) for part in _received(use)] == [FLUSH_BYTES, 1]
    assert seen == [0]


def test_what_was_put_before_the_end_is_sent() -> None:
    assert _received(lambda outbox: [outbox.put(b"last"), outbox.close()]) == [b"last"]


def test_nothing_is_sent_after_the_end() -> None:
    assert _received(lambda outbox: [outbox.close(), outbox.put(b"late")]) == []


def test_what_was_put_counts_as_unsent_until_it_is_sent() -> None:
    seen: list[int] = []

    def use(outbox: Outbox) -> None:
        outbox.put(b"three")
        seen.append(outbox.num_unsent_bytes)
        outbox.flush()
        seen.append(outbox.num_unsent_bytes)

    _received(use)
    assert seen == [5, 0]
