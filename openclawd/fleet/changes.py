"""Waiting for the next change of something that says when it changes."""

from __future__ import annotations

import asyncio


class Changes:
    """Belongs to one event loop. Who waits is woken once; a change between two waits is missed, so
    look before waiting."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def tell(self) -> None:
        """There is one: wake everybody who waits."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self) -> None:
        """Until the next one."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
