"""Whether new work is taken. `drain` shuts the gate and `resume` opens it; what is inside goes on.

Owns who has shut it, how much is inside, and what those hear who come meanwhile. A restart opens
it. The end of the daemon is something else: see `Service.drain`.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openclawctl.wire.errors import Draining
from openclawctl.wire.units import format_duration
from openclawd.fleet.changes import Changes

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Shut:
    """By which principal the gate was shut, and when (Unix seconds)."""

    by: str
    since: float


class Gate:
    """What computes for somebody passes here: inference, and the tokenizer."""

    def __init__(self) -> None:
        self._shut: Shut | None = None
        self._num_inside = 0
        self._changes = Changes()

    @property
    def is_shut(self) -> bool:
        return self._shut is not None

    @property
    def num_inside(self) -> int:
        """Requests that were let in and have not ended, running or waiting."""
        return self._num_inside

    @property
    def state(self) -> str:
        """`ready`, or of one that is shut `draining`, and `drained` once nothing is inside."""
        if self._shut is None:
            return "ready"
        return "draining" if self._num_inside else "drained"

    def story(self) -> str:
        """Who has shut it, and when, in words; empty if it is open."""
        if self._shut is None:
            return ""
        ago = format_duration(time.time() - self._shut.since)
        return f"{self._shut.by} told it to drain {ago} ago"

    def row(self) -> dict[str, Any] | None:
        """As `status` tells it; None while it is open."""
        return {"by": self._shut.by, "since": self._shut.since} if self._shut else None

    def shut(self, by: str) -> None:
        """Let nobody in any more. Whoever did so first is remembered."""
        if self._shut is None:
            self._shut = Shut(by, time.time())

    def open(self) -> None:
        """Let everybody in again."""
        self._shut = None
        self._changes.tell()

    @contextlib.contextmanager
    def passage(self) -> Iterator[None]:
        """Be inside for the length of the block. Raises `Draining` while it is shut."""
        if self._shut is not None:
            raise Draining(
                f"the daemon takes no new requests: {self.story()}",
                hint="try again later; an operator ends that with `openclawctl resume`",
            )
        self._num_inside += 1
        try:
            yield
        finally:
            self._num_inside -= 1
            self._changes.tell()

    async def wait_change(self) -> None:
        """Until somebody has left, or it was opened."""
        await self._changes.wait()
