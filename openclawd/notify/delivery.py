"""Alerts on their way to receivers: how many at once, how often again, when given up.

Owns time-outs between attempts and the bounds. How one attempt is made is the caller's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MAX_OPEN: Final = 200
"""Most deliveries that wait or run; later ones are dropped, and that is logged."""

MAX_AT_ONCE: Final = 8
FIRST_RETRY_S: Final = 1.0
_LONGEST_RETRY_S: Final = 60.0

logger = logging.getLogger(__name__)


class Failed(Exception):
    """An attempt that did not succeed. `is_final`: another one cannot, either."""

    def __init__(self, reason: str, *, is_final: bool = False) -> None:
        super().__init__(reason)
        self.is_final = is_final


@dataclass(frozen=True, slots=True)
class Delivery:
    """One receiver of one alert. `attempt` raises `Failed`; `what` names it in the log."""

    what: str
    attempt: Callable[[], Awaitable[None]]
    retries: int


class Deliveries:
    """What is under way. The tasks belong to `run`."""

    def __init__(self, *, first_retry_s: float = FIRST_RETRY_S) -> None:
        self._first_retry_s = first_retry_s
        self._at_once = asyncio.Semaphore(MAX_AT_ONCE)
        self._open: set[asyncio.Task[None]] = set()
        self._is_closing = asyncio.Event()

    def put(self, delivery: Delivery) -> None:
        """Take on a delivery. Never waits."""
        if len(self._open) >= MAX_OPEN:
            logger.error("%s is dropped: %d are under way already", delivery.what, MAX_OPEN)
            return
        task = asyncio.get_running_loop().create_task(self._deliver(delivery))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def close(self, grace_s: float) -> None:
        """Make no more attempts; give those that run so many seconds, then cancel them."""
        self._is_closing.set()
        while self._open:
            _, late = await asyncio.wait(self._open, timeout=grace_s)
            if late:
                logger.error("%d alerts are given up: the end has come", len(late))
                for task in late:
                    task.cancel()
                await asyncio.wait(late)

    async def _deliver(self, delivery: Delivery) -> None:
        for number in range(delivery.retries + 1):
            if number and not await self._pause(number):
                logger.error("%s is given up: the end has come", delivery.what)
                return
            try:
                async with self._at_once:
                    await delivery.attempt()
            except Failed as failure:
                is_last = failure.is_final or number == delivery.retries
                level = logging.ERROR if is_last else logging.WARNING
                how = "failed for good" if is_last else "failed and is tried again"
                logger.log(level, "%s %s: %s", delivery.what, how, failure)
                if is_last:
                    return
            else:
                logger.info("%s was delivered", delivery.what)
                return

    async def _pause(self, number: int) -> bool:
        """Before attempt `number`, twice as long each time. False: there is none."""
        pause_s = min(self._first_retry_s * 2 ** (number - 1), _LONGEST_RETRY_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._is_closing.wait()
        return not self._is_closing.is_set()
