"""Taking turns at one model: the pure queue of admission, with somebody waiting at each ticket.

Owns the futures of those who wait, and when they hear of their position. Who comes next is
`RequestQueue`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openclawd.admission.queue import LOOKAHEAD, Place, RequestQueue, Standing
from openclawd.admission.tiers import DEFAULT_TIER, Priority, Tier

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable


@dataclass(slots=True, eq=False)
class Turn:
    """One who holds a ticket. `rank` is the number that the engine is to order it by; `on_rank`, if
    set, hears of another one while it computes. `told` is the last position it heard of; `since` is
    when it came, on the loop's clock; `name` is what `places` calls it."""

    comes: asyncio.Future[None]
    on_queued: Callable[[Place], None]
    rank: int = 0
    on_rank: Callable[[int], None] | None = None
    told: int = 0
    since: float = 0.0
    name: str = ""


class Turns:
    """The places of one model: `max_running` of them, see `RequestQueue`."""

    def __init__(self, *, model: str, max_running: int, max_waiting: int, max_skips: int) -> None:
        self._num_places = max_running
        self._queue: RequestQueue[Turn] = RequestQueue(
            model=model, max_running=max_running, max_waiting=max_waiting, max_skips=max_skips
        )

    @property
    def num_places(self) -> int:
        return self._num_places

    @property
    def num_running(self) -> int:
        return self._queue.num_running

    @property
    def num_waiting(self) -> int:
        return self._queue.num_waiting

    def standings(self) -> dict[Priority, Standing]:
        """How it looks for each priority."""
        return {priority: self._queue.standing(priority) for priority in Priority}

    @contextlib.asynccontextmanager
    async def take(
        self,
        on_queued: Callable[[Place], None],
        *,
        priority: Priority = Priority.NORMAL,
        weight: int = 1,
        principal: str = "",
        tier: Tier = DEFAULT_TIER,
        tokens: int = 0,
        name: str = "",
    ) -> AsyncIterator[Turn]:
        """Hold `weight` of the places for the length of the block. `tokens` are those of the
        prompt; what comes of it is told to `served`.

        `on_queued` is called if it has to wait, and again whenever it stands at half the position
        it last heard of, or less: that is enough to follow, and few messages however long the line.
        Raises `Overloaded`.
        """
        loop = asyncio.get_running_loop()
        turn = Turn(loop.create_future(), on_queued, since=loop.time(), name=name)
        started = self._queue.enter(
            turn,
            priority=priority,
            weight=weight,
            now=turn.since,
            principal=principal,
            tier=tier,
            tokens=tokens,
        )
        try:
            self._admit(started)
            if not turn.comes.done():
                self._tell(turn)
                await turn.comes
            yield turn
        finally:
            turn.on_rank = None
            self._admit(self._queue.leave(turn, now=loop.time()))
            self._tell_who_moved_up()

    def resize(self, num_places: int) -> None:
        """There are so many places from now on."""
        if num_places != self._num_places:
            self._num_places = num_places
            self._admit(self._queue.resize(num_places, now=asyncio.get_running_loop().time()))
            self._tell_who_moved_up()

    def limit(self, *, max_waiting: int, max_skips: int) -> None:
        """The limits are these from now on; whoever waits already goes on waiting."""
        self._queue.limit(max_waiting=max_waiting, max_skips=max_skips)

    def places(self) -> dict[str, Place]:
        """Where those stand by now that are the next in line, `LOOKAHEAD` at most, by their
        names."""
        first = itertools.islice(self._queue.line(), LOOKAHEAD)
        return {turn.name: self._queue.place(turn) for turn in first}

    def longest_wait_s(self) -> float:
        """How long the one has waited that waits longest; 0 if nobody does."""
        oldest = self._queue.oldest()
        return 0.0 if oldest is None else asyncio.get_running_loop().time() - oldest.since

    def served(self, turn: Turn, tokens: int) -> None:
        """Tokens have come for one whose turn it is. Less than 0: so many of its prompt had been
        computed before."""
        if tokens:
            now = asyncio.get_running_loop().time()
            self._admit(self._queue.charge(turn, tokens, now=now))

    def _admit(self, turns: Iterable[Turn]) -> None:
        """Tell the engine first who is to lose a place, then let in who takes it."""
        for turn in self._queue.take_moved():
            turn.rank = self._queue.rank(turn)
            if turn.on_rank is not None:
                turn.on_rank(turn.rank)
        for turn in turns:
            turn.rank = self._queue.rank(turn)
            if not turn.comes.done():  # it may have been cancelled, and leaves soon
                turn.comes.set_result(None)

    def _tell_who_moved_up(self) -> None:
        for position, turn in enumerate(itertools.islice(self._queue.line(), LOOKAHEAD), 1):
            if position <= turn.told // 2:
                self._tell(turn)

    def _tell(self, turn: Turn) -> None:
        place = self._queue.place(turn)
        turn.told = place.position
        turn.on_queued(place)
