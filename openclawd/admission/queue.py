"""The queue in front of one model: the only place where a request waits for its turn.

Pure: tickets and `now` in, decisions out. A ticket is whatever the caller uses to tell its requests
apart; its weight is how many of the model's places it takes.

- Higher priorities go first; within one, whose tier and principal were served least
  (`fairness.py`), and of one principal's, first come, first served.
- A ticket runs as soon as the running ones of its own and higher priorities leave it room. So it
  may start although lower ones hold every place; the engine then sets some of those aside. What
  runs can take the places once for each priority, and no more.
- One that does not fit is passed by those behind it that do.
- The first in line of a priority that has been overtaken `max_skips` times goes before everybody,
  and counts as one of the highest priority until it ends. There is one such ticket at a time, so
  that a long queue of them does not turn the priorities over. One that runs is overtaken, too,
  while more urgent ones hold every place without a break: the engine has set it aside, and would
  for ever. It was overtaken if it would have room but for those that came later or have started
  since it is the first. Who stands before it because it is owed more overtakes nobody.
- A principal that holds less than its share of the places may take one of who holds most above its
  own (`preemption.py`). That one is *aside*: it stands in line again, first of its principal's, and
  goes on in its turn. At most half of the places' worth is aside.

The engine is told numbers only (`rank`): four for each priority; one more for who has just taken a
place, until its first token, so that its prompt is read at once; one less for who is to lose it.
That which goes before everybody has the highest priority's.

How long anybody waits: between two starts of a priority, higher ones start at most `max_skips`
times, and as many more as while the one that went before everybody runs, once for each priority
below the highest. Within a priority see `fairness.py`.

The places may become more or fewer (`resize`), as workers of the model come and go. Who was let in
stays, and one that needs more places than there are left can still be let in: there are as many as
the largest ticket needs.

Invariants: nobody waits who could run by these rules; a ticket is in the queue at most once, and
whoever was let in stays until it leaves.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic

from openclawctl.wire.errors import Overloaded
from openclawd.admission.fairness import Entry, FairLine, State, Ticket
from openclawd.admission.preemption import SAFE_TOKENS, choose_victims
from openclawd.admission.tiers import DEFAULT_TIER, Priority, Tier

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["LOOKAHEAD", "Place", "Priority", "RequestQueue", "Standing"]

RESERVE_SHARE: Final = 8
"""One in so many places in the queue is kept for each higher priority, so that those who have time
cannot shut out those who have none."""

LOOKAHEAD: Final = 32
"""So many of those in front are told their exact place. Looking further would cost each event more
the longer the queue is, for a place that will have changed by the time it matters."""

RECHECK_TOKENS: Final = 32
"""Tokens served after which somebody may be owed a place though nobody came or left."""

_RANKS: Final = 4
"""Numbers of the engine for each priority."""

_WEIGHT_OF_NEWEST: Final = 0.2
"""Weight of the newest service time in the running mean: it follows a change of load in about five
requests without jumping at every one."""

_HIGHEST: Final = max(Priority)
_HIGHEST_FIRST: Final = sorted(Priority, reverse=True)
_BELOW_HIGHEST: Final = _HIGHEST_FIRST[1:]


@dataclass(frozen=True, slots=True)
class Place:
    """Where somebody stands. `position` 1 is next; beyond `LOOKAHEAD` it is the most that it can
    be. `eta_s` is None while nobody has finished yet, and knows nothing of higher priorities that
    are still to come."""

    position: int
    eta_s: float | None


@dataclass(frozen=True, slots=True)
class Standing:
    """How it looks for one priority. `eta_s` is about what a new request of it would wait."""

    running: int
    waiting: int
    eta_s: float | None


class RequestQueue(Generic[Ticket]):
    """`now` is the monotonic clock in seconds. Every event returns the tickets that run from then
    on; `take_moved` tells of those that run and have another `rank` since."""

    def __init__(self, *, model: str, max_running: int, max_waiting: int, max_skips: int) -> None:
        self._model = model
        self._num_places = max_running
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._max_skips = max_skips
        self._entries: dict[Ticket, Entry[Ticket]] = {}
        self._running: dict[Ticket, Entry[Ticket]] = {}
        self._lines: dict[Priority, FairLine[Ticket]] = {p: FairLine() for p in Priority}
        self._raised: Entry[Ticket] | None = None  # wherever it is, it is not in `_lines`
        self._load = dict.fromkeys(Priority, 0)  # places taken, by level
        self._num_waiting = dict.fromkeys(Priority, 0)
        self._num_let_in = dict.fromkeys(Priority, 0)
        self._num_places_aside = 0
        self._moved: list[Ticket] = []
        self._mean_s: dict[Priority, float] = {}
        self._next_number = itertools.count()
        self._next_start = itertools.count(1)
        self._num_unchecked_tokens = 0
        self._is_anybody_overdue = False
        self._is_anybody_skipped = False

    # ---- questions ----

    @property
    def num_running(self) -> int:
        """Those who were let in, set aside or not."""
        return sum(self._num_let_in.values())

    @property
    def num_waiting(self) -> int:
        return sum(self._num_waiting.values())

    @property
    def max_running(self) -> int:
        """The places there are."""
        return self._max_running

    @property
    def num_principals(self) -> int:
        """Those of whom something is kept, once for each priority and tier."""
        return sum(line.num_principals for line in self._lines.values())

    def line(self) -> Iterator[Ticket]:
        """Those who wait, the next in line first, as far as can be foreseen."""
        return (entry.ticket for entry in self._in_line() if entry.state is State.WAITING)

    def oldest(self) -> Ticket | None:
        """Who has waited longest."""
        waiting = (each.ticket for each in self._entries.values() if each.state is State.WAITING)
        return next(waiting, None)

    def place(self, ticket: Ticket) -> Place:
        """Where one who waits stands."""
        mine = self._entries[ticket]
        position, ahead = 1, dict.fromkeys(Priority, 0)
        for other in itertools.islice(self._in_line(), LOOKAHEAD):
            if other is mine:
                return Place(position, self._eta_s(mine.level, mine.weight, ahead))
            position += other.state is State.WAITING
            ahead[other.level] += other.weight
        at_most = sum(self._num_waiting[level] for level in Priority if level >= mine.level)
        return Place(max(position, at_most), self._eta_of_new_s(mine.level, mine.weight))

    def standing(self, priority: Priority) -> Standing:
        """How it looks for one priority."""
        eta_s = self._eta_of_new_s(priority, 1)
        return Standing(self._num_let_in[priority], self._num_waiting[priority], eta_s)

    def rank(self, ticket: Ticket) -> int:
        """The number that the engine orders by: higher first."""
        entry = self._entries[ticket]
        return _RANKS * entry.level + entry.is_boosted - (entry.state is State.ASIDE)

    def take_moved(self) -> list[Ticket]:
        """Those that have another rank since this was last asked, of those still here."""
        moved, self._moved = self._moved, []
        return [ticket for ticket in dict.fromkeys(moved) if ticket in self._entries]

    # ---- events ----

    def enter(
        self,
        ticket: Ticket,
        *,
        priority: Priority,
        weight: int,
        now: float,
        principal: str = "",
        tier: Tier = DEFAULT_TIER,
        tokens: int = 0,
    ) -> list[Ticket]:
        """Add a ticket. `tokens` are known to be needed, which is those of its prompt: they are
        charged when it starts. Returns who runs from now on: this one, or nobody if it waits, or
        both it and others, if those can use what is left when it takes places of another.

        Raises `Overloaded` when it would have to wait and the queue is full.
        """
        weight = min(weight, self._num_places)
        account = self._lines[priority].open(tier, principal)
        number = next(self._next_number)
        entry = Entry(ticket, number, weight, priority, priority, account, tokens)
        is_full = self.num_waiting >= self._max_waiting_of(priority)
        self._entries[ticket] = entry
        self._num_waiting[priority] += 1
        self._lines[priority].add(entry)
        started = self._start_all(now)
        if is_full and entry.state is State.WAITING:
            self._forget(entry)
            raise self._overloaded(priority, weight)
        return started

    def charge(self, ticket: Ticket, tokens: int, *, now: float) -> list[Ticket]:
        """Tokens of a ticket that was let in were served; less than 0 takes back what was charged
        at its start and need not be computed. It keeps one: nothing is for nothing. Nothing happens
        when it has left."""
        if (entry := self._entries.get(ticket)) is None:
            return []
        tokens = max(tokens, 1 - entry.charged)
        self._lines[entry.priority].charge(entry, tokens)
        if entry.is_boosted:
            entry.is_boosted = False
            self._moved.append(ticket)
        self._num_unchecked_tokens += tokens
        if self._num_unchecked_tokens < RECHECK_TOKENS:
            return []
        self._num_unchecked_tokens = 0
        return self._start_all(now)

    def leave(self, ticket: Ticket, *, now: float) -> list[Ticket]:
        """Take a ticket out, finished or given up."""
        entry = self._entries[ticket]
        if entry.started_at is not None:
            self._note_service(entry.priority, now - entry.started_at)
        self._forget(entry)
        if entry is self._raised:
            self._raised = None
            self._is_anybody_overdue = True
        if self._max_running > self._num_places:
            self._fit_places()
        self._raise_overdue()
        started = self._start_all(now)
        self._forgive_skips()
        return started

    def resize(self, num_places: int, *, now: float) -> list[Ticket]:
        """There are so many places from now on."""
        self._num_places = num_places
        self._fit_places()
        started = self._start_all(now)
        self._forgive_skips()
        return started

    def limit(self, *, max_waiting: int, max_skips: int) -> None:
        """The limits are these from now on; whoever waits already goes on waiting."""
        self._max_waiting, self._max_skips = max_waiting, max_skips

    def _fit_places(self) -> None:
        widest = max((entry.weight for entry in self._entries.values()), default=1)
        self._max_running = max(self._num_places, widest)

    def _forget(self, entry: Entry[Ticket]) -> None:
        line = self._lines[entry.priority]
        del self._entries[entry.ticket]
        if entry.state is State.RUNNING:
            self._stop(entry)
        elif entry is not self._raised:
            line.remove(entry)
        self._num_places_aside -= entry.weight * (entry.state is State.ASIDE)
        counts = self._num_waiting if entry.state is State.WAITING else self._num_let_in
        counts[entry.priority] -= 1
        line.close(entry)

    # ---- who runs ----

    def _start_all(self, now: float) -> list[Ticket]:
        started: list[Ticket] = []
        while self._has_line and (entry := self._next_to_start() or self._make_way()) is not None:
            (started if entry.state is State.WAITING else self._moved).append(entry.ticket)
            self._start(entry, now)
        return started

    @property
    def _has_line(self) -> bool:
        """Is there anybody who does not run?"""
        return len(self._entries) > len(self._running)

    def _next_to_start(self) -> Entry[Ticket] | None:
        """Who starts next, if anybody can. One that goes before everybody is passed by nobody."""
        if (raised := self._raised_in_line()) is not None:
            return raised if raised.weight <= self._room(raised.level) else None
        for level in _HIGHEST_FIRST:
            if self._lines[level] and (room := self._room(level)) > 0:
                entry = self._lines[level].first(room)
                if entry is not None:
                    return entry
        return None

    def _make_way(self) -> Entry[Ticket] | None:
        """One that is owed a place, once others have been set aside for it."""
        if self._raised_in_line() is not None:
            return None
        for level in _HIGHEST_FIRST:
            for entry in self._lines[level].firsts():
                if entry.state is State.WAITING and (victims := self._victims(entry)):
                    for victim in victims:
                        self._set_aside(victim)
                    entry.is_boosted = True
                    return entry
        return None

    def _victims(self, entry: Entry[Ticket]) -> list[Entry[Ticket]]:
        level = entry.level
        ordinary = (each for each in self._running.values() if each is not self._raised)
        return choose_victims(
            entry,
            [each for each in ordinary if each.level is level],
            self._lines[level],
            num_places=self._room(level) + self._load[level],
            num_needed=entry.weight - self._room(level),
            max_places=max(1, self._max_running // 2) - self._num_places_aside,
        )

    def _room(self, level: Priority) -> int:
        """Places that are free of this level and higher ones; less than 0 if they hold more than
        there are."""
        return self._max_running - self._num_taken(level)

    def _num_taken(self, level: Priority) -> int:
        return sum(weight for at, weight in self._load.items() if at >= level)

    def _start(self, entry: Entry[Ticket], now: float) -> None:
        """It runs from now on, for the first time or again."""
        line = self._lines[entry.priority]
        passed = self._first_behind(entry)
        if entry is not self._raised:
            line.remove(entry)
        if entry.state is State.WAITING:
            self._num_waiting[entry.priority] -= 1
            self._num_let_in[entry.priority] += 1
            line.charge_prompt(entry)
            entry.started_at = now
        else:
            self._num_places_aside -= entry.weight
            entry.safe_until = entry.charged + SAFE_TOKENS
        entry.state, entry.start_number = State.RUNNING, next(self._next_start)
        self._running[entry.ticket] = entry
        self._load[entry.level] += entry.weight
        line.hold(entry.account, entry.weight)
        self._count_skips(entry, passed)

    def _stop(self, entry: Entry[Ticket]) -> None:
        del self._running[entry.ticket]
        self._load[entry.level] -= entry.weight
        self._lines[entry.priority].hold(entry.account, -entry.weight)

    def _set_aside(self, entry: Entry[Ticket]) -> None:
        self._stop(entry)
        entry.state, entry.is_boosted = State.ASIDE, False
        self._num_places_aside += entry.weight
        self._lines[entry.priority].put_back(entry)
        self._moved.append(entry.ticket)

    # ---- who is overtaken ----

    def _first_behind(self, entry: Entry[Ticket]) -> list[Entry[Ticket]]:
        """The first in line of each level that one who starts may overtake. It takes nothing from
        those of its own level if its place is another's."""
        levels = [at for at in Priority if at < entry.level + (not entry.is_boosted)]
        firsts = (self._lines[level].first() for level in levels)
        return [first for first in firsts if first is not None and first is not entry]

    def _count_skips(self, by: Entry[Ticket], passed: Iterable[Entry[Ticket]]) -> None:
        """One has started: those in front who waited for room, and those who run and will lose
        theirs, may have been overtaken by it."""
        for first in itertools.chain(passed, self._oldest_running(below=by.level)):
            if self._is_overtaken(first, by):
                first.num_skips += 1
                self._is_anybody_skipped = True
                self._is_anybody_overdue |= first.num_skips >= self._max_skips
        self._raise_overdue()

    def _oldest_running(self, *, below: Priority) -> Iterator[Entry[Ticket]]:
        """Of each lower level: only these can be overtaken, the others stand behind them anyway."""
        for level in Priority:
            if level < below and self._load[level]:
                running = (each for each in self._running.values() if each.level is level)
                yield min(running, key=_number)

    def _is_overtaken(self, first: Entry[Ticket], by: Entry[Ticket]) -> bool:
        """Would it have room, were it not for those that came after it or have started since it is
        the first, `by` among them?"""
        if first.state is not State.RUNNING and first.first_at is None:
            first.first_at = by.start_number
        if not _is_later(by, first):
            return False
        rivals = self._rivals(first)
        later = sum(rival.weight for rival in rivals if _is_later(rival, first))
        taken = sum(rival.weight for rival in rivals)
        return taken - later <= self._max_running - first.weight < taken

    def _rivals(self, entry: Entry[Ticket]) -> list[Entry[Ticket]]:
        """Those who run and must leave it room: of its own and higher priorities while it waits;
        once it runs, of higher ones."""
        lowest = entry.level + (entry.state is State.RUNNING)
        return [rival for rival in self._running.values() if rival.level >= lowest]

    def _forgive_skips(self) -> None:
        """Those who run and have room again, be it for a moment, were not set aside for ever."""
        if not self._is_anybody_skipped:
            return
        self._is_anybody_skipped = bool(self._entries)  # until nobody is here: that is often enough
        for oldest in self._oldest_running(below=_HIGHEST):
            if self._num_taken(Priority(oldest.level + 1)) + oldest.weight <= self._max_running:
                oldest.num_skips = 0

    def _raise_overdue(self) -> None:
        if self._raised is not None or not self._is_anybody_overdue:
            return
        in_line = (self._lines[level].first() for level in Priority)
        firsts = itertools.chain(in_line, self._oldest_running(below=_HIGHEST))
        overdue = [each for each in firsts if each and each.num_skips >= self._max_skips]
        self._raised = raised = min(overdue, key=_overdue_first, default=None)
        if raised is None:
            return
        if raised.state is State.RUNNING:
            self._load[raised.level] -= raised.weight
            self._load[_HIGHEST] += raised.weight
            self._moved.append(raised.ticket)
        else:
            self._lines[raised.priority].remove(raised)
        raised.level = _HIGHEST

    def _raised_in_line(self) -> Entry[Ticket] | None:
        raised = self._raised
        return raised if raised and raised.state is not State.RUNNING else None

    def _in_line(self) -> Iterator[Entry[Ticket]]:
        if (raised := self._raised_in_line()) is not None:
            yield raised
        for level in _HIGHEST_FIRST:
            yield from self._lines[level].in_order()

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
        ahead = {at: line.num_places * (at >= priority) for at, line in self._lines.items()}
        if (raised := self._raised_in_line()) is not None:
            ahead[_HIGHEST] += raised.weight
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


def _number(entry: Entry[Ticket]) -> int:
    return entry.number


def _overdue_first(entry: Entry[Ticket]) -> tuple[int, int]:
    """Who has been overtaken most; of equals, who came first."""
    return -entry.num_skips, entry.number


def _is_later(running: Entry[Ticket], first: Entry[Ticket]) -> bool:
    """Did it come after one that is the first of its level, or start while that was the first?"""
    was_first = first.first_at is not None and running.start_number >= first.first_at
    return running.number > first.number or was_first
