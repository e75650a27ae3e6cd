"""Reserving with somebody waiting: woken in order, cancelled anywhere, alerted once."""

import asyncio
import logging
import random

import pytest

from openclawctl.wire.errors import BudgetExceeded
from openclawd.admission.budget_rules import Amount, Need
from openclawd.admission.budgets import Fallback
from openclawd.admission.subjects import Match, Per, Subject
from openclawd.admission.windows import Calendar, Lifetime, Rolling, Unit
from openclawd.observe import message_ids
from openclawd.server.budgets import BudgetDesk, rule_from

NOW = 1_790_000_000.5
ALICE = Subject("user:alice", model="small")


def plain(name="b", **changes):
    values = {
        "match": {},
        "per": "all",
        "tokens": 1000,
        "money": None,
        "window": "month",
        "time_zone": "Europe/Berlin",
        "on_short": "shrink",
        "fallback": None,
        "alerts": [800, 950, 1000],
        "max_wait_s": 30.0,
    }
    return {"name": name, **values, **changes}


class World:
    """A desk, and what it told."""

    def __init__(self, *plains):
        self.noted, self.said, self.positions = [], [], []
        self.desk = BudgetDesk(
            [rule_from(each) for each in plains or [plain()]],
            note_alerts=self.noted.extend,
            on_alert=self.said.append,
            wall=lambda: NOW,
        )

    async def reserve(self, prompt=100, completion=700, *, subject=ALICE, **changes):
        need = Need.linear(Amount(prompt), Amount(1), max_completion=completion)
        return await self.desk.reserve(subject, need, on_queued=self.positions.append, **changes)

    def start(self, *args, **changes):
        return asyncio.create_task(self.reserve(*args, **changes))

    @property
    def counts(self):
        return self.desk.rows(None)[0]["tokens"]

    def check_idle(self):
        budgets = self.desk.budgets
        assert (budgets.num_open, budgets.num_waiting, self.counts["reserved"]) == (0, 0, 0)
        assert not self.desk._waiters


def run(use):
    return asyncio.run(use())


async def turns(number=3):
    """Let everybody run who can."""
    for _ in range(number):
        await asyncio.sleep(0)


def test_settling_wakes_who_waits():
    async def use():
        world = World()
        first = await world.reserve()
        waiting = world.start()
        await turns()
        assert world.positions == [1]
        first.settle(Amount(150))
        second = await waiting
        assert (second.max_completion, second.shrunk_by) == (700, "")
        second.release()
        second.release()
        assert world.counts["used"] == 150
        world.check_idle()

    run(use)


def test_a_reservation_ends_once():
    async def use():
        world = World()
        first = await world.reserve()
        first.settle(Amount(1))
        with pytest.raises(AssertionError):
            first.settle(Amount(1))
        assert world.counts["used"] == 1

    run(use)


def test_waiting_is_bounded_and_says_why():
    async def use():
        world = World(plain(max_wait_s=0.0))
        first = await world.reserve()
        with pytest.raises(BudgetExceeded, match="800 tokens are reserved by requests that are"):
            await world.reserve()
        first.settle(Amount(0))
        world.check_idle()

    run(use)


@pytest.mark.parametrize("num_turns", range(5))
def test_one_that_is_cancelled_leaves_nothing_behind(num_turns):
    """Before it waits, while it does, and after it was woken but before it ran."""

    async def use():
        world = World()
        first = await world.reserve()
        waiting = world.start()
        behind = world.start(10, 10)
        await turns(num_turns)
        first.settle(Amount(100))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        (await behind).release()
        world.check_idle()

    run(use)


def test_a_listener_that_fails_leaves_nothing_behind():
    async def use():
        world = World()
        first = await world.reserve()
        need = Need.linear(Amount(100), Amount(1), max_completion=700)

        def fail(position):
            raise ConnectionError

        with pytest.raises(ConnectionError):
            await world.desk.reserve(ALICE, need, on_queued=fail)
        first.release()
        world.check_idle()

    run(use)


def test_cancelling_anywhere_in_a_crowd():
    """Some of two hundred are cancelled at random moments; everybody else gets an answer."""

    async def one(world, source, subject):
        try:
            held = await world.reserve(source.randint(5, 50), 60, subject=subject)
        except BudgetExceeded:
            return 0
        used = 0
        try:
            await turns(source.randint(0, 6))
            used = source.randint(1, held.amount.tokens)
        finally:
            held.settle(Amount(used))
            world.desk.budgets.check(int(NOW))
        return used

    async def use():
        source = random.Random(7)
        world = World(plain(tokens=5000), plain("own", per="principal", tokens=600))
        subjects = [Subject(f"user:{number % 20}") for number in range(300)]
        tasks = [asyncio.create_task(one(world, source, subject)) for subject in subjects]
        while not all(task.done() for task in tasks):
            await turns(1)
            source.choice(tasks).cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(r for r in results if isinstance(r, int)) <= world.counts["used"] <= 5000
        world.check_idle()

    run(use)


def test_a_fallback_is_handed_back():
    async def use():
        world = World(plain(fallback="tiny"))
        (await world.reserve(100, 900)).settle(Amount(1000))
        offered = await world.reserve(5, 5)
        assert isinstance(offered, Fallback)
        assert offered.model == "tiny"
        with pytest.raises(BudgetExceeded):
            await world.reserve(5, 5, is_fallback=True)

    run(use)


def test_an_alert_is_logged_written_down_and_passed_on_once(caplog):
    async def use():
        world = World()
        (await world.reserve(100, 800)).settle(Amount(850))
        (await world.reserve(100, 20)).settle(Amount(5))
        assert [alert.share for alert in world.said] == [800]
        assert world.noted == world.said
        assert world.desk.share_left(ALICE) == pytest.approx(0.145)

    with caplog.at_level(logging.WARNING):
        run(use)
    (record,) = caplog.records
    assert record.getMessage() == (
        "budget b has used 85 %: 850 of 1000 tokens; reset at 2026-10-01T00:00:00+02:00"
    )
    assert record.fields["message_id"] == message_ids.ALERT
    assert record.fields["share"] == 0.8


def test_rules_are_made_of_plain_values():
    rule = rule_from(plain(match={"group": ("research",)}, per="app", window=7200))
    assert rule.match == Match(group=("research",))
    assert (rule.per, rule.window) == (Per.APP, Rolling(7200))
    assert rule_from(plain(window="lifetime")).window == Lifetime()
    assert rule_from(plain(window="week")).window == Calendar(Unit.WEEK, rule.zone)
