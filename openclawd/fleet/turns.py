"""Taking turns at one model: the pure queue of admission, with somebody waiting at each ticket.

Owns the futures of those who wait. Who comes next is `RequestQueue`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from openclawd.admission.queue import RequestQueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class Turns:
    """At most `max_running` at once; `max_waiting` more may wait."""

    def __init__(self, *, model: str, max_running: int, max_waiting: int) -> None:
        self._queue: RequestQueue[object] = RequestQueue(
            model=model, max_running=max_running, max_waiting=max_waiting
        )
        self._waiting: dict[object, asyncio.Future[None]] = {}

    @property
    def num_running(self) -> int:
        return self._queue.num_running

    @property
    def num_waiting(self) -> int:
        return self._queue.num_waiting

    @contextlib.asynccontextmanager
    async def take(self, on_queued: Callable[[int, float | None], None]) -> AsyncIterator[None]:
        """Hold one of the places for the length of the block, first come first served.

        `on_queued(position, eta_s)` is called once if it has to wait. Raises `Overloaded`.
        """
        ticket = object()
        loop = asyncio.get_running_loop()
        may_start = self._queue.enter(ticket, now=loop.time())
        try:
            if not may_start:
                self._waiting[ticket] = loop.create_future()
                on_queued(self._queue.position(ticket), self._queue.eta_s(ticket))
                await self._waiting[ticket]
            yield
        finally:
            self._waiting.pop(ticket, None)
            for promoted in self._queue.leave(ticket, now=loop.time()):
                if not (turn := self._waiting[promoted]).done():
                    turn.set_result(None)
