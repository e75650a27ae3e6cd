"""The queue in front of one model: the only place where a request waits for its turn.

Pure: tickets and `now` in, decisions out. First come, first served; bounded. A ticket is whatever
the caller uses to tell its requests apart.

Invariants: at most `max_running` tickets run; nobody waits while there is room; a ticket is in the
queue at most once.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from openclawctl.wire.errors import Overloaded

Ticket = TypeVar("Ticket")

_WEIGHT_OF_NEWEST = 0.2
"""Weight of the newest service time in the running mean: it follows a change of load in about five
requests without jumping at every one."""


class RequestQueue(Generic[Ticket]):
    """`now` is the monotonic clock in seconds."""

    def __init__(self, *, model: str, max_running: int, max_waiting: int) -> None:
        self._model = model
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._running: dict[Ticket, float] = {}
        self._waiting: deque[Ticket] = deque()
        self._mean_service_s: float | None = None

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def enter(self, ticket: Ticket, *, now: float) -> bool:
        """Add a ticket. True: it runs now; False: it waits. Raises `Overloaded` when full."""
        if len(self._running) < self._max_running:
            self._running[ticket] = now
            return True
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(
                f"{len(self._waiting)} requests wait for model {self._model} already; "
                "that is the limit (resource_limits.max_queued_requests)",
                hint="try again later",
                retry_after_s=self._eta_s(len(self._waiting)) or 1.0,
            )
        self._waiting.append(ticket)
        return False

    def leave(self, ticket: Ticket, *, now: float) -> list[Ticket]:
        """Take a ticket out, finished or given up. Returns the tickets that run from now on."""
        started_at = self._running.pop(ticket, None)
        if started_at is None:
            self._waiting.remove(ticket)
            return []
        self._note_service(now - started_at)
        promoted = []
        while self._waiting and len(self._running) < self._max_running:
            promoted.append(self._waiting.popleft())
            self._running[promoted[-1]] = now
        return promoted

    def position(self, ticket: Ticket) -> int:
        """1 for the next in line."""
        return self._waiting.index(ticket) + 1

    def eta_s(self, ticket: Ticket) -> float | None:
        """About how long until it runs; None while no request has finished yet."""
        return self._eta_s(self.position(ticket))

    def _eta_s(self, position: int) -> float | None:
        if self._mean_service_s is None:
            return None
        return round(self._mean_service_s * position / self._max_running, 3)

    def _note_service(self, seconds: float) -> None:
        mean = self._mean_service_s
        self._mean_service_s = (
            seconds if mean is None else mean + _WEIGHT_OF_NEWEST * (seconds - mean)
        )
