"""A request that is of no use after some time ends then, wherever it is.

Owns the timer and the sentence; ending the request is what a cancel does (`Exchange.cancel`).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from typing import TYPE_CHECKING, Final

from openclawctl.wire.errors import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from openclawd.server.peer import Exchange


class Stage(enum.Enum):
    """Where an inference request is, in words that follow "while it"."""

    LOADING = "waited for its model to load"
    PREPARING = "had its prompt read"
    QUEUED = "waited for its turn"
    COMPUTING = "was computed"


_HINTS: Final = {
    Stage.LOADING: "load the model beforehand (`openclawctl load`), or give more time",
    Stage.PREPARING: "shorten the prompt, or give more time",
    Stage.QUEUED: "ask when less is waiting (`openclawctl status`), with a higher priority, or give"
    " more time",
    Stage.COMPUTING: "ask for fewer tokens (max_tokens), or give more time",
}


@contextlib.contextmanager
def deadline(
    exchange: Exchange, seconds: float | None, stage: Callable[[], Stage]
) -> Iterator[None]:
    """End a request that is not done so many seconds after its arrival (None: never)."""
    if seconds is None:
        yield
        return

    def end() -> None:
        exchange.cancel(_too_late(seconds, stage()))

    timer = asyncio.get_running_loop().call_at(exchange.arrived_at + seconds, end)
    try:
        yield
    finally:
        timer.cancel()


def _too_late(seconds: float, stage: Stage) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the deadline of {seconds:g} s passed while the request {stage.value}",
        hint=_HINTS[stage],
    )
