"""Whether everybody gets what is due to them: the queue on a virtual clock, for a long time."""

from __future__ import annotations

import math

import pytest
from admission.simulation import Client, World

from openclawd.admission.preemption import SAFE_TOKENS
from openclawd.admission.queue import LOOKAHEAD, RequestQueue
from openclawd.admission.tiers import Priority, Tier

GOLD = Tier("gold", 4)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1]


# ---- under full load ----


def everybody() -> list[Client]:
    """Some of two tiers, who ask for different things, and two of a lower priority."""
    return [
        Client("many", num_open=200, completion_tokens=(16, 128)),
        Client("long answers", num_open=10, completion_tokens=(200, 400)),
        Client("long prompts", num_open=10, prompt_tokens=(500, 1500)),
        Client("short", num_open=10, prompt_tokens=(4, 16), completion_tokens=(1, 8)),
        Client("gold 1", GOLD, num_open=20, completion_tokens=(16, 128)),
        Client("gold 2", GOLD, num_open=10, prompt_tokens=(4, 600)),
        Client("slow 1", priority=Priority.BATCH, num_open=20),
        Client("slow 2", GOLD, priority=Priority.BATCH, num_open=20),
    ]


@pytest.mark.parametrize(
    "num_events", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)], ids=["some", "million"]
)
def test_everybody_is_served_by_weight_and_nobody_starves(num_events: int) -> None:
    """Two tiers at one priority, under full load, and a lower priority beside them."""
    clients = everybody()
    world = World(*clients, places=8, max_skips=32).run(num_events=num_events)
    served = world.served()
    plain = [served[name] for name in ("many", "long answers", "long prompts", "short")]
    gold = [served["gold 1"], served["gold 2"]]
    assert max(plain) <= 1.1 * min(plain)
    assert max(gold) <= 1.1 * min(gold)
    assert 3.6 <= sum(gold) / sum(plain) <= 4.4
    slow, slow_gold = served["slow 1"], served["slow 2"]
    assert slow
    assert 3.6 <= slow_gold / slow <= 4.4 or num_events < 1_000_000
    # The lowest priority gets a start after `max_skips` of others, and those that fit into the
    # places while the one before it ends.
    while_one_runs = 32
    assert max(world.gaps[Priority.BATCH]) <= 32 + while_one_runs + world.places
    assert world.num_set_aside < world.num_starts


def test_the_lowest_tier_waits_no_longer_than_its_bound() -> None:
    """One that asks for one thing at a time, at the lowest priority, while others always want more
    than there is: it starts once 32 others have, after the one of its kind before it has ended."""
    lowest = Client("lowest", Tier("low", 1), Priority.BATCH, period_s=30.0)
    crowd = [
        Client(f"urgent {number}", GOLD, Priority.INTERACTIVE, num_open=20) for number in range(3)
    ]
    world = World(lowest, *crowd, places=8, max_skips=32).run(until_s=3_000)
    assert len(lowest.waits_s) > 90
    bound_s = (1 + 32 / world.places) * world.longest_s
    assert max(lowest.waits_s) <= bound_s


# ---- those who ask for little ----


def ttft_p95(*others: Client) -> float:
    few = [Client(f"few {n}", period_s=10.0, first_s=20 + 2.5 * n) for n in range(4)]
    World(*others, *few).run(until_s=2_000)
    return percentile([ttft_s for client in few for ttft_s in client.ttfts_s], 0.95)


def test_those_who_ask_for_little_hardly_notice_one_who_asks_for_much() -> None:
    crowd = Client("many", num_open=200, completion_tokens=(64, 256))
    assert ttft_p95(crowd) <= 3 * ttft_p95()


def test_nor_several_in_other_tiers() -> None:
    crowd = [Client(f"many {n}", Tier(f"t{n}"), num_open=50) for n in range(3)]
    assert ttft_p95(*crowd) <= 3 * ttft_p95()


def test_who_was_idle_has_no_credit() -> None:
    """Two who always want more; one of them comes an hour later."""
    early, late = Client("early", num_open=20), Client("late", num_open=20, first_s=3600)
    world = World(early, late).run(until_s=3600)
    before = early.served
    world.run(until_s=4200)
    assert 0.95 <= late.served / (early.served - before) <= 1.05


def test_nobody_is_set_aside_over_and_over() -> None:
    """Many come at once with a request each, again and again, while two hold all places."""
    crowd = [Client(f"many {n}", num_open=50, completion_tokens=(100, 200)) for n in range(2)]
    guests = [Client(f"guest {n}", period_s=1.0, first_s=n / 20) for n in range(20)]
    world = World(*crowd, *guests).run(num_events=50_000)
    assert world.num_set_aside
    assert world.max_set_aside <= 200 // SAFE_TOKENS + 1
    served = world.served()
    assert 0.9 <= served["many 0"] / served["many 1"] <= 1.1


# ---- who takes whose place ----


def enter(queue: RequestQueue[str], *tickets: str, now: float = 0.0) -> list[str]:
    """Tickets are named after their principals: a1, a2, …"""
    started = []
    for ticket in tickets:
        started += queue.enter(
            ticket, priority=Priority.NORMAL, weight=1, now=now, principal=ticket[0]
        )
    return started


def make(places: int) -> RequestQueue[str]:
    return RequestQueue(model="m", max_running=places, max_waiting=1000, max_skips=32)


def test_a_place_is_taken_from_who_holds_most_and_the_newest_first() -> None:
    queue = make(6)
    enter(queue, "a1", "a2", "a3", "a4", "b1", "b2", "a5")
    assert enter(queue, "c1") == ["c1"]
    assert queue.take_moved() == ["a4"]
    assert [queue.rank(ticket) for ticket in ("a3", "a4", "b2", "c1")] == [0, -1, 0, 1]
    assert queue.charge("c1", 100, now=0.0) == []
    assert queue.take_moved() == ["c1"]
    assert enter(queue, "c2") == []  # it was served more than a
    assert queue.charge("a1", 200, now=0.0) == ["c2"]
    assert queue.take_moved() == ["a3"]
    assert enter(queue, "c3") == []  # nobody can lose another and keep its share of two
    assert queue.rank("c1") == 0


def test_who_was_set_aside_goes_on_before_others_of_its_principal() -> None:
    queue = make(2)
    enter(queue, "a1", "a2", "a3")
    assert enter(queue, "b1") == ["b1"]
    assert queue.take_moved() == ["a2"]
    assert queue.num_running == 3
    assert list(queue.line()) == ["a3"]
    assert queue.leave("b1", now=0.0) == []
    assert queue.take_moved() == ["a2"]
    assert queue.rank("a2") == 0
    assert enter(queue, "b2") == ["b2"]
    assert queue.take_moved() == ["a1"]  # although older: a2 is safe until it was served some more


def test_one_that_was_set_aside_can_leave() -> None:
    queue = make(2)
    enter(queue, "a1", "a2", "a3")
    enter(queue, "b1")
    assert queue.leave("a2", now=0.0) == []
    assert queue.leave("b1", now=0.0) == ["a3"]
    assert queue.charge("a2", 5, now=0.0) == []  # what came late counts for nobody
    assert queue.take_moved() == []


def test_who_was_served_more_takes_no_place() -> None:
    queue = make(2)
    enter(queue, "a1", "a2", "b1")
    assert queue.take_moved() == ["a2"]
    queue.charge("b1", 1000, now=0.0)
    queue.leave("b1", now=0.0)
    enter(queue, "a3", "b2")
    assert queue.rank("a2") == 0
    assert list(queue.line()) == ["a3", "b2"]
    queue.charge("a1", 1001, now=0.0)
    assert list(queue.line()) == ["a3"]


def test_a_place_of_one_more_urgent_is_taken_by_nobody() -> None:
    queue = make(2)
    for ticket in ("a1", "a2"):
        queue.enter(ticket, priority=Priority.INTERACTIVE, weight=1, now=0.0, principal="a")
    assert enter(queue, "b1") == []


def test_what_was_computed_before_is_not_charged() -> None:
    """The prompt counts from the start, less what was cached, but never for nothing."""
    queue = make(1)
    for ticket, tokens in (("a1", 1000), ("a2", 10), ("b1", 10)):
        queue.enter(
            ticket,
            priority=Priority.NORMAL,
            weight=1,
            now=0.0,
            principal=ticket[0],
            tokens=tokens,
        )
    assert list(queue.line()) == ["b1", "a2"]
    queue.charge("a1", -5000, now=0.0)
    assert list(queue.line()) == ["b1", "a2"]
    queue.leave("a1", now=0.0)
    queue.charge("b1", 0, now=0.0)
    assert list(queue.line()) == ["a2"]


def test_who_stands_far_back_hears_the_most_that_it_can_be() -> None:
    queue = make(1)
    enter(queue, *(f"a{number}" for number in range(LOOKAHEAD + 10)))
    assert queue.place("a1").position == 1
    assert queue.place(f"a{LOOKAHEAD}").position == LOOKAHEAD
    assert queue.place(f"a{LOOKAHEAD + 1}").position == LOOKAHEAD + 9
    enter(queue, "b1")
    assert queue.place("b1").position == 1


def test_who_was_served_more_is_remembered_until_the_others_have_caught_up() -> None:
    queue: RequestQueue[str] = RequestQueue(
        model="m", max_running=2, max_waiting=1000, max_skips=1000
    )
    enter(queue, "a1")
    queue.enter("z1", priority=Priority.NORMAL, weight=2, now=0.0, principal="z")
    for number in range(250):  # they pass z, which needs both places
        ticket = f"{chr(0x4E00 + number)}1"
        assert enter(queue, ticket) == [ticket]
        queue.charge(ticket, 1000, now=0.0)
        queue.leave(ticket, now=0.0)
    assert queue.num_principals == 252
    queue.charge("a1", 5000, now=0.0)
    queue.leave("z1", now=0.0)
    enter(queue, "a2", "a3", *(f"{letter}1" for letter in "bcdefg"))
    assert queue.num_principals < 20


def test_principals_who_are_owed_nothing_are_forgotten() -> None:
    queue = make(1)
    enter(queue, "x1", "y1")
    for number in range(5_000):
        ticket = f"{chr(0x4E00 + number)}1"
        enter(queue, ticket)
        queue.leave(ticket, now=0.0)
    assert queue.num_principals <= 3
