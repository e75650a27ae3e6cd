"""An event loop whose time passes only while nobody has anything to do, and then at once.

Its clock is the declared seam of asyncio: `loop.time()`, and a selector that waits. So what takes
days takes milliseconds, and every timer fires exactly when it is due.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

Result = TypeVar("Result")


class _Sleepless(selectors.SelectSelector):
    """Waits for nothing: lets its clock run on instead."""

    now = 1_000_000.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "everybody waits, and there is no timer to wake anybody"
        ready = super().select(0)
        if not ready:
            self.now += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Sleepless()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now

    def num_timers(self) -> int:
        """Timers that will fire some day."""
        return sum(not timer.cancelled() for timer in self._scheduled)  # type: ignore[attr-defined]


def run(scenario: Coroutine[Any, Any, Result]) -> Result:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(scenario)


async def pass_time(seconds: float) -> None:
    """For as long as that, by the loop's clock."""
    await asyncio.sleep(seconds)


def loop() -> VirtualLoop:
    running = asyncio.get_running_loop()
    assert isinstance(running, VirtualLoop)
    return running
