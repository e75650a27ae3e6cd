"""Waiting in lanes: the pure table of admission, with somebody at each ticket.

Owns the futures of those who wait, when they hear of their position, and the timer of
`max_queue_time`. Who may go on is `LaneTable`'s.

Invariant: whoever leaves its `Slot`, in whatever way, has given back all it held.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openclawd.admission.lanes import LaneTable, lanes_of, longest_wait, waited_too_long
from openclawd.admission.queue import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from types import TracebackType

    from openclawctl.wire.errors import Problem
    from openclawd.admission.lanes import Lane
    from openclawd.admission.limit_rules import LimitRule
    from openclawd.admission.subjects import Subject


@dataclass(slots=True, eq=False)
class _Turn:
    """One who holds a ticket. `longest_wait` is the rule that says how long it may wait, and the
    seconds; from `too_late_at` on it may not, by the loop's clock. `told` is the last position it
    heard of. The timer runs while it waits, and `comes` is there while it waits in a lane."""

    lanes: Sequence[Lane]
    on_queued: Callable[[Place], None]
    give_up: Callable[[Problem], object]
    longest_wait: tuple[str, float] | None
    too_late_at: float
    comes: asyncio.Future[None] | None = None
    timer: asyncio.TimerHandle | None = None
    told: int = 0

    def start_timer(self) -> None:
        """It waits from now on. Raises `Overloaded` when it is too late for that."""
        if self.longest_wait is None:
            return
        loop = asyncio.get_running_loop()
        problem = waited_too_long(*self.longest_wait)
        if self.too_late_at <= loop.time():
            raise problem
        self.timer = loop.call_at(self.too_late_at, self.give_up, problem)

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Slot:
    """What a request holds in its lanes for the length of a block (`async with`), in which it has
    passed them all. It tells how it goes on from there."""

    def __init__(self, table: LaneTable[_Turn], turn: _Turn) -> None:
        self._table = table
        self._turn = turn

    async def __aenter__(self) -> Slot:
        table, turn = self._table, self._turn
        table.enter(turn, turn.lanes)
        if not table.may_go_on(turn):
            try:
                await self._wait_in_line()
            except BaseException:
                self._leave()
                raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave()

    def must_wait(self) -> None:
        """It has to wait elsewhere, too: for a rate limit, a budget, its turn at the model. Raises
        `Overloaded` when too many of its lanes' requests wait, or it has waited too long.

        Raises in its own task only, at the first call: later ones, of its position, come from tasks
        of others, and `give_up` has been called by then if it is too late.
        """
        if self._table.is_queued(self._turn):
            return
        self._turn.start_timer()
        self._table.wait(self._turn)

    def wait(self, place: Place) -> None:
        """It has to wait for its turn at the model. Pass this as `on_queued` there."""
        self.must_wait()
        self._turn.on_queued(place)

    def start(self) -> None:
        """It waits no more."""
        self._table.start(self._turn)
        self._turn.stop_timer()

    async def _wait_in_line(self) -> None:
        turn = self._turn
        turn.comes = asyncio.get_running_loop().create_future()
        turn.start_timer()
        _tell(turn, self._table.position(turn))
        await turn.comes

    def _leave(self) -> None:
        turn = self._turn
        turn.stop_timer()
        _admit(self._table.leave(turn))
        for position, other in self._table.lines(turn.lanes):
            if position <= other.told // 2:
                _tell(other, position)


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

    def take(
        self,
        rules: Collection[LimitRule],
        subject: Subject,
        on_queued: Callable[[Place], None],
        *,
        give_up: Callable[[Problem], object],
    ) -> Slot:
        """Hold a place in each of a request's lanes for the length of an `async with`.

        `rules` are those that apply to it. `on_queued` is called as by `Turns.take`. `give_up` must
        end the request (`Exchange.cancel`): it is called when it waits and a rule's `max_queue_s`
        have passed since now, before `Slot.start`. The block raises `Overloaded` when a lane's
        `max_queued` wait already.
        """
        longest = longest_wait(rules)
        too_late_at = asyncio.get_running_loop().time() + longest[1] if longest else 0.0
        turn = _Turn(lanes_of(rules, subject), on_queued, give_up, longest, too_late_at)
        return Slot(self._table, turn)


def _tell(turn: _Turn, position: int) -> None:
    turn.told = position
    turn.on_queued(Place(position, None))


def _admit(turns: Iterable[_Turn]) -> None:
    for turn in turns:
        assert turn.comes is not None, "only who waits is let in"
        if not turn.comes.done():  # it may have been cancelled, and leaves soon
            turn.comes.set_result(None)
