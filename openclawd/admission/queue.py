"""The queue in front of one model: the only place where a request waits for its turn.

Pure: tickets and `now` in, decisions out. A ticket is whatever the caller uses to tell its requests
apart; its weight is how many of the model's places it takes.

- Higher priorities go first; within one, first come, first served.
- A ticket runs as soon as the running ones of its own and higher priorities leave it room. So it
  may start although lower ones hold every place; the engine then sets some of those aside. What
  runs can take the places once for each priority, and no more.
- One that does not fit is passed by those behind it that do.
- One that has been overtaken `max_skips` times goes before everybody, and counts as one of the
  highest priority until it ends. There is one such ticket at a time, so that a long queue of them
  does not turn the priorities over. One that runs is overtaken, too, while more urgent ones hold
  every place without a break: the engine has set it aside, and would for ever.

Invariants: nobody waits who could run by these rules; a ticket is in the queue at most once, and
whoever was let in stays until it leaves.
"""

from __future__ import annotations

import enum
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from openclawctl.wire.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Ticket = TypeVar("Ticket")

RESERVE_SHARE: Final = 8
"""One in so many places in the queue is kept for each higher priority, so that those who have time
cannot shut out those who have none."""

_WEIGHT_OF_NEWEST: Final = 0.2
"""Weight of the newest service time in the running mean: it follows a change of load in about five
requests without jumping at every one."""


class Priority(enum.IntEnum):
    """Higher goes first. The engine is told the number."""

    BATCH = -1
    NORMAL = 0
    INTERACTIVE = 1


_HIGHEST: Final = max(Priority)
_HIGHEST_FIRST: Final = sorted(Priority, reverse=True)


@dataclass(frozen=True, slots=True)
class Place:
    """Where somebody stands. `position` 1 is next; `eta_s` is None while nobody has finished yet,
    and knows nothing of higher priorities that are still to come."""

    position: int
    eta_s: float | None


@dataclass(frozen=True, slots=True)
class Standing:
    """How it looks for one priority. `eta_s` is about what a new request of it would wait."""

    running: int
    waiting: int
    eta_s: float | None


@dataclass(slots=True, eq=False)
class _Entry(Generic[Ticket]):
    """`number` is the order of arrival; `level` the priority it has by now."""

    ticket: Ticket
    number: int
    weight: int
    priority: Priority
    level: Priority
    num_skips: int = 0
    started_at: float | None = None


class RequestQueue(Generic[Ticket]):
    """`now` is the monotonic clock in seconds."""

    def __init__(self, *, model: str, max_running: int, max_waiting: int, max_skips: int) -> None:
        self._model = model
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._max_skips = max_skips
        self._entries: dict[Ticket, _Entry[Ticket]] = {}
        self._running: dict[Ticket, _Entry[Ticket]] = {}
        self._waiting: dict[Priority, dict[Ticket, _Entry[Ticket]]] = {p: {} for p in Priority}
        self._raised: _Entry[Ticket] | None = None  # waiting or running; in neither of `_waiting`
        self._load = dict.fromkeys(Priority, 0)  # places taken, by level
        self._mean_s: dict[Priority, float] = {}
        self._next_number = 0

    # ---- questions ----

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._entries) - len(self._running)

    def line(self) -> Iterator[Ticket]:
        """Those who wait, the next in line first."""
        if self._raised is not None and self._raised.started_at is None:
            yield self._raised.ticket
        for level in _HIGHEST_FIRST:
            yield from self._waiting[level]

    def place(self, ticket: Ticket) -> Place:
        """Where one who waits stands."""
        position, ahead = 1, dict.fromkeys(Priority, 0)
        for other in self.line():
            if other == ticket:
                break
            position += 1
            ahead[self._entries[other].level] += self._entries[other].weight
        entry = self._entries[ticket]
        return Place(position, self._eta_s(entry.level, entry.weight, ahead))

    def standing(self, priority: Priority) -> Standing:
        """How it looks for one priority."""
        entries = [entry for entry in self._entries.values() if entry.priority is priority]
        num_running = sum(entry.started_at is not None for entry in entries)
        return Standing(num_running, len(entries) - num_running, self._eta_of_new_s(priority, 1))

    # ---- events ----

    def enter(self, ticket: Ticket, *, priority: Priority, weight: int, now: float) -> list[Ticket]:
        """Add a ticket. Returns the tickets that run from now on: this one, or none if it waits.

        Raises `Overloaded` when it would have to wait and the queue is full.
        """
        weight = min(weight, self._max_running)
        entry = _Entry(ticket, self._next_number, weight, priority, level=priority)
        is_full = self.num_waiting >= self._max_waiting_of(priority)
        self._next_number += 1
        self._entries[ticket] = self._waiting[priority][ticket] = entry
        started = self._start_all(now)
        if is_full and entry.started_at is None:
            del self._entries[ticket], self._waiting[priority][ticket]
            raise self._overloaded(priority, weight)
        return started

    def leave(self, ticket: Ticket, *, now: float) -> list[Ticket]:
        """Take a ticket out, finished or given up. Returns the tickets that run from now on."""
        entry = self._entries.pop(ticket)
        self._waiting[entry.priority].pop(ticket, None)
        if entry.started_at is not None:
            del self._running[ticket]
            self._load[entry.level] -= entry.weight
            self._note_service(entry.priority, now - entry.started_at)
        if entry is self._raised:
            self._raised = None
            self._raise_overdue()
        started = self._start_all(now)
        self._forgive_skips()
        return started

    # ---- who runs ----

    def _start_all(self, now: float) -> list[Ticket]:
        started = []
        while (entry := self._next_to_start()) is not None:
            self._start(entry, now)
            started.append(entry.ticket)
        return started

    def _next_to_start(self) -> _Entry[Ticket] | None:
        """Who starts next, if anybody can. One that goes before everybody is passed by nobody."""
        if self._raised is not None and self._raised.started_at is None:
            return self._raised if self._raised.weight <= self._room(self._raised.level) else None
        for level in _HIGHEST_FIRST:
            if room := self._room(level):
                for entry in self._waiting[level].values():
                    if entry.weight <= room:
                        return entry
        return None

    def _room(self, level: Priority) -> int:
        """Places that are free of this level and higher ones."""
        taken = sum(weight for at, weight in self._load.items() if at >= level)
        return max(0, self._max_running - taken)

    def _start(self, entry: _Entry[Ticket], now: float) -> None:
        self._waiting[entry.priority].pop(entry.ticket, None)
        self._running[entry.ticket] = entry
        self._load[entry.level] += entry.weight
        entry.started_at = now
        for first in self._firsts():
            if self._is_overtaken(first, entry):
                first.num_skips += 1
        self._raise_overdue()

    def _firsts(self) -> Iterator[_Entry[Ticket]]:
        """The first of each priority among those who wait and among those who run: only these can
        be overtaken, the others stand behind them anyway."""
        for waiting in self._waiting.values():
            yield from itertools.islice(waiting.values(), 1)
        for level in Priority:
            running = (entry for entry in self._running.values() if entry.level is level)
            if oldest := min(running, key=_number, default=None):
                yield oldest

    def _is_overtaken(self, first: _Entry[Ticket], by: _Entry[Ticket]) -> bool:
        """Would it have room, were it not for those that came after it, `by` among them?"""
        rivals = self._rivals(first)
        earlier = _places(entry for entry in rivals if entry.number < first.number)
        is_later_rival = by in rivals and by.number > first.number
        room = self._max_running - first.weight
        return is_later_rival and earlier <= room < _places(rivals)

    def _rivals(self, entry: _Entry[Ticket]) -> list[_Entry[Ticket]]:
        """Those who run and must leave it room: of its own and higher priorities while it waits;
        once it runs, of higher ones."""
        lowest = entry.level if entry.started_at is None else entry.level + 1
        return [rival for rival in self._running.values() if rival.level >= lowest]

    def _forgive_skips(self) -> None:
        """Those who run and have room again, be it for a moment, were not set aside for ever."""
        for first in self._firsts():
            has_room = _places(self._rivals(first)) + first.weight <= self._max_running
            if first.started_at is not None and has_room:
                first.num_skips = 0

    def _raise_overdue(self) -> None:
        if self._raised is not None:
            return
        overdue = (entry for entry in self._firsts() if entry.num_skips >= self._max_skips)
        self._raised = raised = min(overdue, key=_number, default=None)
        if raised is not None:
            if self._waiting[raised.priority].pop(raised.ticket, None) is None:
                self._load[raised.level] -= raised.weight
                self._load[_HIGHEST] += raised.weight
            raised.level = _HIGHEST

    # ---- who may wait ----

    def _max_waiting_of(self, priority: Priority) -> int:
        """How many may wait in all before one more of this priority is refused."""
        return self._max_waiting - (_HIGHEST - priority) * (self._max_waiting // RESERVE_SHARE)

    def _overloaded(self, priority: Priority, weight: int) -> Overloaded:
        most = self._max_waiting_of(priority)
        kept = self._max_waiting - most
        reserve = f", of which {kept} are kept for higher priorities" if kept else ""
        return Overloaded(
            f"{self.num_waiting} requests wait for model {self._model} already; "
            f"resource_limits.max_queued_requests is {self._max_waiting}{reserve}",
            hint="try again later",
            retry_after_s=self._eta_of_new_s(priority, weight) or 1.0,
        )

    # ---- how long it takes ----

    def _eta_of_new_s(self, priority: Priority, weight: int) -> float | None:
        ahead = dict.fromkeys(Priority, 0)
        for entry in map(self._entries.__getitem__, self.line()):
            if entry.level >= priority:
                ahead[entry.level] += entry.weight
        return self._eta_s(priority, weight, ahead)

    def _eta_s(self, level: Priority, weight: int, ahead: Mapping[Priority, int]) -> float | None:
        """About how long until one with these places ahead of it runs: as long as it takes until
        of its own and higher levels, running or ahead in line, so few are left that it has room."""
        places = {at: num + (self._load[at] if at >= level else 0) for at, num in ahead.items()}
        num_places, most = sum(places.values()), self._max_running - weight
        if num_places <= most:
            return 0.0
        if not self._mean_s:
            return None
        held_s = sum(num * self._mean_service_s(level) for level, num in places.items())
        return round(held_s / num_places * (num_places - most) / self._max_running, 3)

    def _mean_service_s(self, priority: Priority) -> float:
        """Of this priority; of all, while nobody of it has finished."""
        means = self._mean_s
        return means[priority] if priority in means else sum(means.values()) / len(means)

    def _note_service(self, priority: Priority, seconds: float) -> None:
        mean_s = self._mean_s.get(priority, seconds)
        self._mean_s[priority] = mean_s + _WEIGHT_OF_NEWEST * (seconds - mean_s)


def _number(entry: _Entry[Ticket]) -> int:
    return entry.number


def _places(entries: Iterable[_Entry[Ticket]]) -> int:
    return sum(entry.weight for entry in entries)
