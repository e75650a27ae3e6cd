"""Those who wait in lanes: who is woken, what they hear, and that nothing is kept of who leaves."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openclawctl.wire.errors import Overloaded, Problem
from openclawd.admission.limit_rules import LimitRule
from openclawd.admission.queue import Place
from openclawd.admission.subjects import Per, Subject
from openclawd.server.lanes import Lanes

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from openclawd.server.lanes import Slot

ALICE = Subject("user:alice", model="m")
ONE_EACH = LimitRule("one", max_parallel=1)
FIVE_IN_ALL = LimitRule("all", per=Per.ALL, max_parallel=5)


class Guests:
    """Tasks that hold a slot until they are let go."""

    def __init__(self, *rules: LimitRule) -> None:
        self.lanes = Lanes()
        self.rules = rules
        self.heard: dict[str, list[int]] = {}
        self.inside: dict[str, Slot] = {}
        self.gave_up: dict[str, Problem] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._leave: dict[str, asyncio.Event] = {}

    async def come(self, *names: str, subject: Subject = ALICE) -> None:
        for name in names:
            self.heard[name] = []
            self._leave[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._stay(name, subject))
        await settle()

    async def _stay(self, name: str, subject: Subject) -> None:
        async with self.lanes.take(
            self.rules,
            subject,
            lambda place: self.heard[name].append(place.position),
            give_up=lambda problem: self._give_up(name, problem),
        ) as slot:
            self.inside[name] = slot
            try:
                await self._leave[name].wait()
            finally:
                del self.inside[name]

    def _give_up(self, name: str, problem: Problem) -> None:
        self.gave_up[name] = problem
        self.tasks[name].cancel()

    async def go(self, name: str) -> None:
        self._leave[name].set()
        await settle()

    async def clear(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await settle()
        assert (self.lanes.num_inside, self.lanes.num_waiting) == (0, 0)


async def settle() -> None:
    """Until every task has gone as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


def runs(scenario: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def test() -> None:
        asyncio.run(scenario())

    test.__name__ = scenario.__name__
    return test


@runs
async def test_who_waits_hears_of_its_position_at_first_and_when_it_has_halved() -> None:
    guests = Guests(ONE_EACH)
    await guests.come("a", *"bcdefghijk")
    assert guests.heard["k"] == [10]
    for name in "abcdefghij":
        await guests.go(name)
    assert list(guests.inside) == ["k"]
    assert (guests.heard["k"], guests.heard["a"]) == ([10, 5, 2, 1], [])
    await guests.clear()


@runs
async def test_one_that_gives_up_at_the_moment_it_is_called_passes_its_turn_on() -> None:
    guests = Guests(ONE_EACH)
    await guests.come("a", "b", "c")
    guests.tasks["b"].cancel()  # it has not run since, so it still stands in line
    await guests.go("a")
    assert list(guests.inside) == ["c"]
    await guests.clear()


@runs
async def test_a_full_lane_refuses_and_forgets() -> None:
    guests = Guests(LimitRule("one", max_parallel=1, max_queued=1))
    await guests.come("a", "b", "c")
    assert isinstance(guests.tasks["c"].exception(), Overloaded)
    assert guests.lanes.num_waiting == 1
    await guests.clear()


@runs
async def test_who_has_waited_its_time_is_told_which_rule_and_leaves() -> None:
    guests = Guests(LimitRule("quick", max_parallel=1, max_queue_s=0.001))
    await guests.come("a")
    guests.inside["a"].start()
    await guests.come("b")
    await asyncio.wait([guests.tasks["b"]])
    assert "limit quick allows no more" in guests.gave_up["b"].message
    assert (list(guests.inside), list(guests.gave_up)) == (["a"], ["b"])
    await guests.clear()


@runs
async def test_the_time_counts_at_the_model_too_but_not_once_it_is_computed() -> None:
    guests = Guests(LimitRule("quick", max_queue_s=0.001))
    await guests.come("late", "waits", "computes")
    guests.inside["computes"].start()
    guests.inside["waits"].wait(Place(7, None))
    assert guests.heard["waits"] == [7]
    await asyncio.wait([guests.tasks["waits"]])
    await settle()
    assert sorted(guests.inside) == ["computes", "late"]
    with pytest.raises(Overloaded, match="limit quick"):  # it did not have to wait until now
        guests.inside["late"].wait(Place(1, None))
    await guests.clear()


@runs
async def test_a_rule_without_max_parallel_counts_those_who_wait_at_the_model() -> None:
    guests = Guests(LimitRule("line", max_queued=1))
    await guests.come("a", "b")
    guests.inside["a"].wait(Place(1, None))
    with pytest.raises(Overloaded, match="limit line allows 1"):
        guests.inside["b"].wait(Place(2, None))
    guests.inside["a"].start()
    guests.inside["b"].wait(Place(1, None))
    await guests.clear()


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_a_cancel_at_any_moment_gives_everything_back(seed: int) -> None:
    async def scenario() -> None:
        choice = random.Random(seed)
        guests = Guests(LimitRule("two", max_parallel=2), FIVE_IN_ALL)
        for number in range(30):
            name = f"{number}"
            guests.heard[name] = []
            guests._leave[name] = asyncio.Event()
            subject = Subject(f"user:{choice.randrange(4)}")
            guests.tasks[name] = asyncio.create_task(guests._stay(name, subject))
        while guests.tasks:
            assert guests.lanes.num_inside <= 5
            name = choice.choice(sorted(guests.tasks))
            task = guests.tasks.pop(name)
            task.cancel() if choice.random() < 0.5 else guests._leave[name].set()
            for _ in range(choice.randrange(3)):
                await asyncio.sleep(0)
        for _ in range(200):
            await asyncio.sleep(0)
        assert (guests.lanes.num_inside, guests.lanes.num_waiting) == (0, 0)

    asyncio.run(scenario())


@runs
async def test_who_waited_too_long_raises_nothing_in_a_task_that_tells_it_of_its_position() -> None:
    heard: list[int] = []
    is_over = asyncio.Event()

    def give_up(problem: Problem) -> None:
        is_over.set()
        slot.wait(Place(2, None))  # another one leaves the model at this very moment

    rules = [LimitRule("brief", max_queue_s=0.001)]
    async with Lanes().take(
        rules, ALICE, lambda place: heard.append(place.position), give_up=give_up
    ) as slot:
        slot.wait(Place(4, None))
        await is_over.wait()
        assert heard == [4, 2]


@runs
async def test_the_wait_for_a_rate_limit_or_a_budget_counts() -> None:
    guests = Guests(LimitRule("quick", max_queued=1, max_queue_s=0.1))
    await guests.come("a", "b")
    guests.inside["a"].must_wait()
    with pytest.raises(Overloaded, match="max_queued"):
        guests.inside["b"].must_wait()
    await asyncio.wait([guests.tasks["a"]])
    assert "max_queue_time" in str(guests.gave_up["a"])
    await guests.clear()
