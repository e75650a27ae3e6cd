"""Those who wait for their turn at a model: who is woken, and what they hear meanwhile."""

from __future__ import annotations

import asyncio

from openclawctl.wire.errors import Overloaded
from openclawd.admission.tiers import Priority
from openclawd.fleet.turns import Turns


class Guests:
    """Tasks that take a turn and keep it until they are let go."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.heard: dict[str, list[int]] = {}
        self.inside: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._leave: dict[str, asyncio.Event] = {}

    async def come(self, *names: str, priority: Priority = Priority.NORMAL) -> None:
        for name in names:
            self.heard[name] = []
            self._leave[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._stay(name, priority))
        await settle()

    async def _stay(self, name: str, priority: Priority) -> None:
        async with self.turns.take(
            lambda place: self.heard[name].append(place.position), priority=priority, name=name
        ):
            self.inside.append(name)
            await self._leave[name].wait()
        self.inside.remove(name)

    async def go(self, name: str) -> None:
        self._leave[name].set()
        await settle()

    async def give_up(self, *names: str) -> None:
        for name in names:
            self.tasks[name].cancel()
        await settle()


async def settle() -> None:
    """Until every task has gone as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


def turns(*, places: int, max_waiting: int = 100) -> Turns:
    return Turns(model="m", max_running=places, max_waiting=max_waiting, max_skips=32)


async def clear(guests: Guests) -> None:
    await guests.give_up(*guests.tasks)
    assert (guests.turns.num_running, guests.turns.num_waiting) == (0, 0)


def test_who_waits_hears_of_its_position_at_first_and_when_it_has_halved() -> None:
    async def scenario() -> None:
        guests = Guests(turns(places=1))
        await guests.come("a", *"bcdefghijk")
        assert guests.heard["k"] == [10]
        for name in "abcdefghij":
            await guests.go(name)
        assert guests.inside == ["k"]
        assert guests.heard["k"] == [10, 5, 2, 1]
        assert guests.heard["a"] == []
        await clear(guests)

    asyncio.run(scenario())


def test_higher_priorities_come_first() -> None:
    async def scenario() -> None:
        guests = Guests(turns(places=1))
        await guests.come("running", priority=Priority.INTERACTIVE)
        await guests.come("batch", priority=Priority.BATCH)
        await guests.come("normal")
        await guests.come("urgent", priority=Priority.INTERACTIVE)
        assert [guests.heard[name] for name in ("batch", "normal", "urgent")] == [[1], [1], [1]]
        standings = guests.turns.standings()
        assert {priority: standing.waiting for priority, standing in standings.items()} == (
            dict.fromkeys(Priority, 1)
        )
        for name in ("running", "urgent", "normal"):
            await guests.go(name)
        assert guests.inside == ["batch"]
        await clear(guests)

    asyncio.run(scenario())


def test_one_that_gives_up_at_the_moment_it_is_called_passes_its_turn_on() -> None:
    async def scenario() -> None:
        guests = Guests(turns(places=1))
        await guests.come("a", "b", "c")
        guests.tasks["b"].cancel()  # it has not run since, so it still stands in line
        await guests.go("a")
        assert guests.inside == ["c"]
        await clear(guests)

    asyncio.run(scenario())


def test_who_loses_a_place_hears_of_it_before_the_other_comes() -> None:
    async def scenario() -> None:
        places = turns(places=2)
        heard: list[tuple[str, int]] = []

        async def hold(name: str) -> None:
            async with places.take(lambda place: None, principal=name[0], tokens=5) as turn:
                heard.append((name, turn.rank))
                turn.on_rank = lambda rank: heard.append((name, rank))
                await comes[name]
                places.served(turn, 0)
                places.served(turn, 1)
                await leaves[name]
            places.served(turn, 1)  # what comes late counts for nobody

        loop = asyncio.get_running_loop()
        names = ("a1", "a2", "b1")
        comes = {name: loop.create_future() for name in names}
        leaves = {name: loop.create_future() for name in names}
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(hold(name))
                await settle()
            assert heard == [("a1", 0), ("a2", 0), ("a2", -1), ("b1", 1)]
            assert (places.num_running, places.num_waiting) == (3, 0)
            comes["b1"].set_result(None)  # its first token
            await settle()
            leaves["b1"].set_result(None)
            await settle()
            assert heard[4:] == [("b1", 0), ("a2", 0)]
            for future in (*comes.values(), *leaves.values()):
                if not future.done():
                    future.set_result(None)
        assert (places.num_running, places.num_waiting) == (0, 0)

    asyncio.run(scenario())


def test_who_waits_is_let_in_when_the_places_become_more() -> None:
    async def run() -> None:
        guests = Guests(turns(places=1))
        await guests.come("one", "two", "three")
        assert guests.inside == ["one"]
        guests.turns.resize(2)
        await settle()
        assert (guests.inside, guests.turns.num_places) == (["one", "two"], 2)
        guests.turns.resize(1)  # who is in stays
        await guests.go("one")
        assert guests.inside == ["two"]
        await guests.go("two")
        assert guests.inside == ["three"]
        await clear(guests)

    asyncio.run(run())


def test_a_full_queue_refuses_and_forgets() -> None:
    async def scenario() -> None:
        guests = Guests(turns(places=1, max_waiting=1))
        await guests.come("a", "b", "c")
        assert isinstance(guests.tasks["c"].exception(), Overloaded)
        assert guests.turns.num_waiting == 1
        await clear(guests)

    asyncio.run(scenario())


def test_where_the_first_in_line_stand_by_their_names() -> None:
    async def scenario() -> None:
        guests = Guests(turns(places=1))
        await guests.come("inside", "first", "second")
        assert {name: place.position for name, place in guests.turns.places().items()} == {
            "first": 1,
            "second": 2,
        }
        await guests.go("inside")
        assert {name: place.position for name, place in guests.turns.places().items()} == {
            "second": 1
        }
        await clear(guests)

    asyncio.run(scenario())
