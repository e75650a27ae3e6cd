"""Waiting in lanes: the pure table of admission, with somebody at each ticket.

Owns the futures of those who wait, when they hear of their position, and the timer of
`max_queue_time`. Who may go on is `LaneTable`'s.

Invariant: whoever leaves `take`, in whatever way, has given back all it held.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openclawd.admission.lanes import LaneTable, lanes_of, longest_wait, waited_too_long
from openclawd.admission.queue import Place

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence

    from openclawctl.wire.errors import Problem
    from openclawd.admission.lanes import Lane
    from openclawd.admission.limit_rules import LimitRule
    from openclawd.admission.subjects import Subject


@dataclass(slots=True, eq=False)
class _Turn:
    """One who holds a ticket. `told` is the last position it heard of, `too_late` what it is told
    when it has to wait, now that its time for that is over."""

    lanes: Sequence[Lane]
    comes: asyncio.Future[None]
    on_queued: Callable[[Place], None]
    timer: asyncio.TimerHandle | None = None
    told: int = 0
    too_late: Problem | None = None

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Slot:
    """What a request holds that has passed its lanes. It tells how it goes on from there."""

    def __init__(self, table: LaneTable[_Turn], turn: _Turn) -> None:
        self._table = table
        self._turn = turn

    def must_wait(self) -> None:
        """It has to wait elsewhere, too: for a rate limit, a budget, its turn at the model. Raises
        `Overloaded` when too many of its lanes' requests wait, or it has waited too long.

        Raises in its own task only, at the first call: later ones, of its position, come from tasks
        of others, and `give_up` has been called by then if it is too late.
        """
        if self._table.is_queued(self._turn):
            return
        if self._turn.too_late is not None:
            raise self._turn.too_late
        self._table.wait(self._turn)

    def wait(self, place: Place) -> None:
        """It has to wait for its turn at the model. Pass this as `on_queued` there."""
        self.must_wait()
        self._turn.on_queued(place)

    def start(self) -> None:
        """It waits no more."""
        self._table.start(self._turn)
        self._turn.stop_timer()


class Lanes:
    """The lanes of all limit rules."""

    def __init__(self) -> None:
        self._table: LaneTable[_Turn] = LaneTable()

    @property
    def num_waiting(self) -> int:
        return self._table.num_waiting

    @property
    def num_inside(self) -> int:
        return self._table.num_inside

    @contextlib.asynccontextmanager
    async def take(
        self,
        rules: Collection[LimitRule],
        subject: Subject,
        on_queued: Callable[[Place], None],
        *,
        give_up: Callable[[Problem], object],
    ) -> AsyncIterator[Slot]:
        """Hold a place in each of a request's lanes for the length of the block.

        `rules` are those that apply to it. `on_queued` is called as by `Turns.take`. `give_up` must
        end the request (`Exchange.cancel`): it is called when it waits and a rule's `max_queue_s`
        have passed since now, before `Slot.start`. Raises `Overloaded` when a lane's `max_queued`
        wait already.
        """
        loop = asyncio.get_running_loop()
        turn = _Turn(lanes_of(rules, subject), loop.create_future(), on_queued)
        self._table.enter(turn, turn.lanes)
        try:
            if found := longest_wait(rules):
                problem = waited_too_long(*found)
                turn.timer = loop.call_later(found[1], self._time_out, turn, problem, give_up)
            if not self._table.may_go_on(turn):
                _tell(turn, self._table.position(turn))
                await turn.comes
            yield Slot(self._table, turn)
        finally:
            turn.stop_timer()
            _admit(self._table.leave(turn))
            self._tell_who_moved_up(turn.lanes)

    def _time_out(
        self, turn: _Turn, problem: Problem, give_up: Callable[[Problem], object]
    ) -> None:
        turn.too_late = problem
        if self._table.is_queued(turn):
            give_up(problem)

    def _tell_who_moved_up(self, lanes: Iterable[Lane]) -> None:
        for position, turn in self._table.lines(lanes):
            if position <= turn.told // 2:
                _tell(turn, position)


def _tell(turn: _Turn, position: int) -> None:
    turn.told = position
    turn.on_queued(Place(position, None))


def _admit(turns: Iterable[_Turn]) -> None:
    for turn in turns:
        if not turn.comes.done():  # it may have been cancelled, and leaves soon
            turn.comes.set_result(None)
