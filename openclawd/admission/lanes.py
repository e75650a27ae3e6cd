"""Lanes: how many requests of one bucket run side by side, and how many of them wait.

Owns who may go on now, for every limit rule with `max_parallel` or `max_queued`. A lane is the
requests of one rule and one bucket. Pure: events in, tickets that may go on out; who waits for what
is `server/lanes.py`'s.

Rules: a request goes through its lanes one after the other, the narrow ones (a session's, a user's)
before the wide ones (everybody's). It holds its place in those behind it while it waits for the
next. So one that waits for others of its own user holds up nobody else, and since all go by the
same order, no two can wait for each other. Within a lane the first to come is the first to go on.

A request counts against `max_queued` from when it first had to wait, in a lane or later at its
model (`wait`), until it is computed (`start`). One that need not wait is never refused.

Invariants (`check`): no lane has more inside than `max_parallel`; nobody waits for a lane that has
room; everybody is in line in one lane at most; what is empty is forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from openclawctl.wire.errors import Overloaded
from openclawd.admission.limit_rules import strictest
from openclawd.admission.subjects import Per

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from openclawd.admission.limit_rules import LimitRule
    from openclawd.admission.subjects import Subject

Ticket = TypeVar("Ticket")

RETRY_AFTER_S: Final = 1.0
"""When to try again, of which nothing better is known: how long the others take is anybody's
guess."""

_NARROW_FIRST: Final = (
    Per.SESSION,
    Per.KEY,
    Per.PRINCIPAL,
    Per.APP,
    Per.TIER,
    Per.MODEL,
    Per.ALL,
)


@dataclass(frozen=True, slots=True)
class Lane:
    """A lane's name and limits."""

    rule: str
    bucket: str
    max_parallel: int | None = None
    max_queued: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.rule, self.bucket


def lanes_of(rules: Iterable[LimitRule], subject: Subject) -> list[Lane]:
    """The lanes of a request, in the order in which it goes through them."""
    counting = [rule for rule in rules if (rule.max_parallel, rule.max_queued) != (None, None)]
    if len(counting) > 1:
        counting.sort(key=lambda rule: _NARROW_FIRST.index(rule.per))  # stable: else as configured
    return [
        Lane(rule.name, rule.per.bucket(subject), rule.max_parallel, rule.max_queued)
        for rule in counting
    ]


def longest_wait(rules: Iterable[LimitRule]) -> tuple[str, float] | None:
    """The rule with the shortest `max_queue_s`, and that time; None without any."""
    found = strictest(rules, "max_queue_s")
    return found and (found[0].name, found[1])


def waited_too_long(rule: str, seconds: float) -> Overloaded:
    return Overloaded(
        f"the request has waited {seconds:g} s, and limit {rule} allows no more (max_queue_time)",
        hint="try again when less is waiting, or with a higher priority",
        retry_after_s=RETRY_AFTER_S,
    )


@dataclass(slots=True)
class _State(Generic[Ticket]):
    """One lane. `inside` hold a place, `line` wait for one in order; `num_queued` of its requests
    count as waiting, wherever they wait."""

    inside: set[Ticket] = field(default_factory=set)
    line: dict[Ticket, None] = field(default_factory=dict)
    num_queued: int = 0
    num_members: int = 0


@dataclass(slots=True)
class _Member:
    """A request. It holds a place in the first `num_passed` of its lanes."""

    lanes: Sequence[Lane]
    num_passed: int = 0
    is_queued: bool = False

    @property
    def has_passed(self) -> bool:
        return self.num_passed == len(self.lanes)


class LaneTable(Generic[Ticket]):
    """Every lane that somebody is in."""

    def __init__(self) -> None:
        self._states: dict[tuple[str, str], _State[Ticket]] = {}
        self._members: dict[Ticket, _Member] = {}

    # ---- questions ----

    @property
    def num_waiting(self) -> int:
        """How many wait in lanes."""
        return sum(len(state.line) for state in self._states.values())

    @property
    def num_inside(self) -> int:
        """How many have passed all their lanes."""
        return sum(member.has_passed for member in self._members.values())

    def may_go_on(self, ticket: Ticket) -> bool:
        return self._members[ticket].has_passed

    def is_queued(self, ticket: Ticket) -> bool:
        """Does it wait, here or elsewhere?"""
        return self._members[ticket].is_queued

    def position(self, ticket: Ticket) -> int:
        """Where one who waits stands in its present lane; 1 is next."""
        member = self._members[ticket]
        line = self._states[member.lanes[member.num_passed].key].line
        return list(line).index(ticket) + 1

    def lines(self, lanes: Iterable[Lane]) -> Iterator[tuple[int, Ticket]]:
        """Those who wait in any of these lanes, with their positions in it."""
        for lane in lanes:
            if lane.key in self._states:
                yield from enumerate(self._states[lane.key].line, 1)

    # ---- events ----

    def enter(self, ticket: Ticket, lanes: Sequence[Lane]) -> None:
        """A request comes; `may_go_on` says whether it has to wait. Raises `Overloaded` when it has
        to, and too many of a lane do already; nothing is left of it then."""
        assert ticket not in self._members
        self._members[ticket] = member = _Member(lanes)
        for lane in lanes:
            state = self._states.get(lane.key)
            if state is None:
                state = self._states[lane.key] = _State()
            state.num_members += 1
        self._advance(ticket, member)
        if not member.has_passed:
            try:
                self.wait(ticket)
            except Overloaded:
                # It can go without calling anybody: who it passed by had no room either.
                self.leave(ticket)
                raise

    def wait(self, ticket: Ticket) -> None:
        """A request has to wait, here or elsewhere. Raises `Overloaded` like `enter`; it is still
        there then. Nothing happens for one that has waited before."""
        member = self._members[ticket]
        if member.is_queued:
            return
        for lane in member.lanes:
            self._check_queue(lane)
        member.is_queued = True
        for lane in member.lanes:
            self._states[lane.key].num_queued += 1

    def start(self, ticket: Ticket) -> None:
        """A request waits no more, but is computed."""
        member = self._members[ticket]
        if member.is_queued:
            member.is_queued = False
            for lane in member.lanes:
                self._states[lane.key].num_queued -= 1

    def leave(self, ticket: Ticket) -> list[Ticket]:
        """A request is gone, finished or given up. Returns those that may go on from now on."""
        self.start(ticket)
        member = self._members.pop(ticket)
        for lane in member.lanes:
            state = self._states[lane.key]
            state.num_members -= 1
            state.inside.discard(ticket)
            state.line.pop(ticket, None)
        passed = [other for lane in member.lanes for other in self._call(lane)]
        for lane in member.lanes:
            if not self._states[lane.key].num_members:
                del self._states[lane.key]
        return passed

    def check(self) -> None:
        """Assert the invariants; for tests."""
        for (rule, bucket), state in self._states.items():
            lane = self._lane(rule, bucket)
            most = lane.max_parallel
            assert most is None or len(state.inside) <= most
            assert not state.line or (most is not None and len(state.inside) == most)
            assert state.num_members > 0
        for ticket, member in self._members.items():
            waits_in = [lane for lane in member.lanes if ticket in self._states[lane.key].line]
            assert waits_in == list(member.lanes[member.num_passed : member.num_passed + 1])
            assert member.is_queued or not waits_in
            for lane in member.lanes[: member.num_passed]:
                assert ticket in self._states[lane.key].inside

    # ---- going on ----

    def _advance(self, ticket: Ticket, member: _Member) -> None:
        """Through as many lanes as have room, then into the next one's line."""
        for lane in member.lanes[member.num_passed :]:
            state = self._states[lane.key]
            if state.line or not _has_room(lane, state):
                state.line[ticket] = None
                return
            state.inside.add(ticket)
            member.num_passed += 1

    def _call(self, lane: Lane) -> list[Ticket]:
        """Give free places of a lane to the first in its line; those who got through all of theirs.
        What they find in the lanes after it frees none."""
        state, passed = self._states[lane.key], []
        while state.line and _has_room(lane, state):
            ticket = next(iter(state.line))
            del state.line[ticket]
            state.inside.add(ticket)
            member = self._members[ticket]
            member.num_passed += 1
            self._advance(ticket, member)
            if member.has_passed:
                passed.append(ticket)
        return passed

    def _check_queue(self, lane: Lane) -> None:
        num_queued = self._states[lane.key].num_queued
        if lane.max_queued is not None and num_queued >= lane.max_queued:
            whose = f" of {lane.bucket}" if lane.bucket else ""
            raise Overloaded(
                f"{num_queued} requests{whose} wait already; limit {lane.rule} allows "
                f"{lane.max_queued} (max_queued)",
                hint="try again later",
                retry_after_s=RETRY_AFTER_S,
            )

    def _lane(self, rule: str, bucket: str) -> Lane:
        lanes = (lane for member in self._members.values() for lane in member.lanes)
        return next(lane for lane in lanes if lane.key == (rule, bucket))


def _has_room(lane: Lane, state: _State[Ticket]) -> bool:
    return lane.max_parallel is None or len(state.inside) < lane.max_parallel
