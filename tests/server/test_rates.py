"""Rate limits on a loop: hours and days of them, on a clock that takes no time."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from server.virtual_loop import loop, pass_time, run

from openclawctl.wire.errors import LimitExceeded, RateLimited
from openclawd.admission.rates import OnExceed, RatePlace, RateRule
from openclawd.admission.subjects import Match, Per, Subject
from openclawd.config.rates import RateLimitConfig
from openclawd.server.rates import Charge, Rates, rules_of

if TYPE_CHECKING:
    from collections.abc import Callable

ALICE, BOB = Subject("user:alice"), Subject("user:bob")
RULE = RateRule(
    name="r",
    match=Match(),
    per=Per.PRINCIPAL,
    tokens=100,
    requests=None,
    window_s=60.0,
    on_exceed=OnExceed.QUEUE,
    max_wait_s=1e9,
    max_waiting=1000,
)
REJECT = replace(RULE, on_exceed=OnExceed.REJECT)


def ignore(place: RatePlace) -> None:
    del place


async def admit(rates: Rates, prompt_tokens: int, subject: Subject = ALICE) -> Charge:
    return await rates.admit(subject, prompt_tokens, on_queued=ignore)


def start(rates: Rates, prompt_tokens: int, hear: Callable[[RatePlace], None] = ignore) -> Task:
    return asyncio.create_task(rates.admit(ALICE, prompt_tokens, on_queued=hear))


Task = asyncio.Task[Charge]


async def cancel(task: Task) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def assert_at_rest(rates: Rates) -> None:
    """Nobody waits, and no timer is left."""
    assert rates.num_waiting == 0
    assert loop().num_timers() == 0


# ---- ten windows ----


@pytest.mark.parametrize("window_s", [1.0, 60.0, 3600.0, 86_400.0])
@pytest.mark.parametrize("on_exceed", list(OnExceed))
def test_over_ten_windows_the_rate_is_what_was_configured(
    window_s: float, on_exceed: OnExceed
) -> None:
    """Four clients that always want more, of all sizes; those that are refused come back when they
    were told to, and never before."""
    limit, chance = 20_000, random.Random(1)
    taken: list[tuple[float, int]] = []
    refusals = 0

    async def client(rates: Rates, end: float) -> None:
        nonlocal refusals
        needed = 0
        while loop().time() < end:
            needed = needed or chance.choice([10, 30, 100, 400])
            try:
                charge = await admit(rates, needed)
            except RateLimited as problem:
                refusals += 1
                await pass_time(problem.retry_after_s or 0.0)
                continue
            if loop().time() < end:
                taken.append((loop().time(), needed))
                for _ in range(chance.randrange(4)):
                    await pass_time(window_s / 5000)
                    charge.completion(20)
                    taken.append((loop().time(), 20))
            needed = 0

    async def scenario() -> float:
        rule = replace(RULE, tokens=limit, window_s=window_s, on_exceed=on_exceed)
        rates, begin = Rates([rule]), loop().time()
        await asyncio.gather(*(client(rates, begin + 10 * window_s) for _ in range(4)))
        assert_at_rest(rates)
        return begin

    begin = run(scenario())
    total = sum(tokens for at, tokens in taken if at < begin + 10 * window_s)
    assert abs(total - 10 * limit) < 0.02 * 10 * limit
    if on_exceed is OnExceed.REJECT:
        assert refusals


def test_who_comes_back_when_told_is_admitted_then_and_was_not_a_moment_before() -> None:
    async def scenario() -> None:
        rates, chance = Rates([REJECT]), random.Random(2)
        for _ in range(300):
            needed = chance.randrange(1, 60)
            try:
                charge = await admit(rates, needed)
            except RateLimited as problem:
                wait_s = problem.retry_after_s
                assert wait_s is not None
                if wait_s > 0.05:
                    await pass_time(wait_s - 0.05)
                    with pytest.raises(RateLimited):
                        await admit(rates, needed)
                await pass_time(min(wait_s, 0.05))
                charge = await admit(rates, needed)
            charge.completion(chance.randrange(30))
            await pass_time(chance.random())

    run(scenario())


def test_jumps_of_the_wall_clock_have_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test may not set the machine's clock; what programs read of it can be turned."""
    real = time.time

    async def scenario() -> list[float]:
        rates, admitted = Rates([RULE]), []
        for number in range(20):
            offset = 3600.0 * (-1) ** number
            monkeypatch.setattr(time, "time", lambda offset=offset: real() + offset)
            await admit(rates, 50)
            admitted.append(loop().time() - 1_000_000.0)
        return admitted

    assert run(scenario()) == [60.0 * (number // 2) for number in range(20)]


# ---- those who wait ----


def test_they_are_woken_in_order_at_the_very_moment() -> None:
    async def scenario() -> None:
        rates = Rates([RULE])
        await admit(rates, 100)
        begin = loop().time()
        ends: list[tuple[str, float]] = []

        async def one(name: str, prompt_tokens: int) -> None:
            await admit(rates, prompt_tokens)
            ends.append((name, loop().time() - begin))

        await asyncio.gather(one("a", 60), one("b", 60), one("c", 10))
        assert ends == [("a", 60.0), ("b", 120.0), ("c", 120.0)]
        assert_at_rest(rates)

    run(scenario())


def test_they_hear_of_their_place_at_first_and_when_it_has_halved() -> None:
    async def scenario() -> None:
        rates = Rates([RULE])
        await admit(rates, 100)
        heard: list[RatePlace] = []
        ahead = [start(rates, 100) for _ in range(4)]
        last = start(rates, 100, heard.append)
        await pass_time(1.0)
        assert heard == [RatePlace(5, 300.0, "r")]
        await cancel(ahead[0])
        await cancel(ahead[2])
        await pass_time(0.0)
        assert [place.position for place in heard] == [5]
        await cancel(ahead[1])
        await pass_time(59.0)
        assert heard[1:] == [RatePlace(2, 119.0, "r"), RatePlace(1, 60.0, "r")]
        await last
        assert ahead[3].done()
        assert_at_rest(rates)

    run(scenario())


def test_one_that_gives_up_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        rates = Rates([RULE])
        await admit(rates, 60)
        large, small = start(rates, 80), start(rates, 40)
        await pass_time(1.0)
        await cancel(large)
        await small
        assert_at_rest(rates)

    run(scenario())


@pytest.mark.parametrize("num_turns", range(4))
def test_one_that_is_cancelled_at_any_moment_has_taken_nothing(num_turns: int) -> None:
    """Before it is woken, when it has been, and before it has run since."""

    async def scenario() -> None:
        rates = Rates([RULE])
        await admit(rates, 100)
        task = start(rates, 100)
        await pass_time(0.0)
        told = loop().create_future()
        loop().call_later(60.0, told.set_result, None)
        await told
        for _ in range(num_turns):
            await asyncio.sleep(0)
        task.cancel()
        result = await asyncio.gather(task, return_exceptions=True)
        if isinstance(result[0], Charge):
            result[0].refund()
        assert rates.standing(ALICE)[0].used == 0
        assert_at_rest(rates)

    run(scenario())


def test_one_that_is_cancelled_in_the_moment_it_is_admitted_makes_room_for_the_next() -> None:
    async def scenario() -> None:
        rates = Rates([RULE])
        charge = await admit(rates, 100)
        first, second = start(rates, 100), start(rates, 100)
        await pass_time(1.0)
        first.cancel()  # it has not run since, so it still stands in line
        charge.refund()
        await second
        with pytest.raises(asyncio.CancelledError):
            await first
        assert_at_rest(rates)

    run(scenario())


def test_what_is_given_back_wakes_the_next_and_what_comes_keeps_it_waiting() -> None:
    async def scenario() -> None:
        rates = Rates([RULE])
        refunded, running = await admit(rates, 40), await admit(rates, 50)
        task = start(rates, 50)
        await pass_time(1.0)
        running.completion(10)
        refunded.refund()
        await pass_time(0.0)
        assert not task.done()
        await task
        assert loop().time() == 1_000_060.0
        assert_at_rest(rates)

    run(scenario())


def test_whoever_waited_too_long_is_refused() -> None:
    async def scenario() -> None:
        rates = Rates([replace(RULE, max_wait_s=70.0)])
        charge = await admit(rates, 100)
        task = start(rates, 100)
        await pass_time(30.0)
        charge.completion(1)
        with pytest.raises(RateLimited) as caught:
            await task
        assert loop().time() == 1_000_070.0
        assert caught.value.retry_after_s == 50.0
        assert_at_rest(rates)

    run(scenario())


def test_what_can_never_be_admitted_is_refused_at_once() -> None:
    async def scenario() -> None:
        rates = Rates([RULE])
        with pytest.raises(LimitExceeded):
            await admit(rates, 101)
        assert_at_rest(rates)

    run(scenario())


def test_without_rules_nothing_is_counted() -> None:
    async def scenario() -> None:
        rates = Rates([])
        charge = await admit(rates, 10**9)
        charge.completion(10**9)
        charge.refund()
        assert rates.standing(ALICE) == []

    run(scenario())


def test_rules_are_those_of_the_configuration() -> None:
    config = RateLimitConfig.model_validate(
        {
            "name": "r",
            "match": {"group": "staff"},
            "per": "app",
            "requests": 5,
            "window": "1h",
            "on_exceed": "queue",
            "max_wait": "2m",
            "max_waiting": 7,
        }
    )
    assert rules_of([config]) == [
        RateRule(
            name="r",
            match=Match(group=("staff",)),
            per=Per.APP,
            tokens=None,
            requests=5,
            window_s=3600.0,
            on_exceed=OnExceed.QUEUE,
            max_wait_s=120.0,
            max_waiting=7,
        )
    ]
