"""The queue in front of a model keeps its promises whatever comes and goes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from openclawctl.wire.errors import Overloaded
from openclawd.admission.fairness import State
from openclawd.admission.queue import Place, RequestQueue, Standing
from openclawd.admission.tiers import Priority, Tier

BATCH, NORMAL, INTERACTIVE = Priority.BATCH, Priority.NORMAL, Priority.INTERACTIVE


def make(places: int, *, max_waiting: int = 1000, max_skips: int = 1000) -> RequestQueue[str]:
    return RequestQueue(model="m", max_running=places, max_waiting=max_waiting, max_skips=max_skips)


def enter(
    queue: RequestQueue[str], *tickets: str, priority: Priority = NORMAL, weight: int = 1
) -> list[str]:
    """All of them at time 0; those that run from then on."""
    started = []
    for ticket in tickets:
        started += queue.enter(ticket, priority=priority, weight=weight, now=0.0)
    return started


# ---- the rules, compared with a plain retelling of them ----


@dataclass(eq=False)
class Whose:
    """A principal in a tier at one priority, or (`principal` None) the tier itself; what it was
    served is in tokens, or for a tier in tokens ÷ weight."""

    tier: Tier
    served: int = 0
    unconfirmed: int = 0
    last: Whose | None = None  # of a tier: whose last waiting request went last


@dataclass(eq=False)
class Request:
    number: int
    priority: Priority
    weight: int
    tier: Whose
    whose: Whose
    tokens: int
    skips: int = 0
    where: State = State.WAITING
    is_raised: bool = False
    is_boosted: bool = False
    charged: int = 0
    unconfirmed: int = 0
    safe_until: int = 0
    start: int = 0
    passed_since: int | None = None

    @property
    def level(self) -> Priority:
        return INTERACTIVE if self.is_raised else self.priority

    @property
    def is_running(self) -> bool:
        return self.where is State.RUNNING


class Rules:
    """The rules of the queue, told by sorting and counting everything each time."""

    def __init__(self, places: int, max_skips: int) -> None:
        self.num_places = places
        self.max_skips = max_skips
        self.requests: list[Request] = []
        self.tiers: dict[tuple[Priority, str], Whose] = {}
        self.last_tier: dict[Priority, Whose] = {}
        self.accounts: dict[tuple[Priority, str, str], Whose] = {}
        self.typical = dict.fromkeys(Priority, 1)
        self.num_starts = 0
        self.unchecked = 0
        self.moved: set[int] = set()

    # ---- who is where ----

    def running(self, level: Priority = BATCH) -> list[Request]:
        return [r for r in self.requests if r.is_running and r.level >= level]

    def in_line(self, level: Priority) -> list[Request]:
        """Those who wait or were set aside."""
        those = [r for r in self.requests if not r.is_running and not r.is_raised]
        return [r for r in those if r.level is level]

    def room(self, level: Priority) -> int:
        return self.places - weight(self.running(level))

    def aside(self) -> list[Request]:
        return [r for r in self.requests if r.where is State.ASIDE]

    def holds(self, whose: Whose) -> int:
        return weight([r for r in self.running() if whose in (r.tier, r.whose)])

    def raised_in_line(self) -> Request | None:
        return next((r for r in self.requests if r.is_raised and not r.is_running), None)

    # ---- who is next ----

    def order(self, those: list[Request]) -> list[Request]:
        """The first of each tier, in the order of the tiers."""
        firsts = {}
        for r in sorted(those, key=lambda r: (r.whose.served, self.holds(r.whose) > 0, r.number)):
            firsts.setdefault(r.tier, r)
        return sorted(
            firsts.values(), key=lambda r: (r.tier.served, self.holds(r.tier) > 0, r.number)
        )

    def line(self) -> list[Request]:
        """As it would go on if each start were charged the usual."""
        raised = self.raised_in_line()
        order = [] if raised is None else [raised]
        for level in sorted(Priority, reverse=True):
            left = self.in_line(level)
            served = {whose: whose.served for r in left for whose in (r.tier, r.whose)}
            holding = {whose for whose in served if self.holds(whose)}
            while left:

                def key(whose: Whose, number: int) -> tuple[int, bool, int]:
                    return served[whose], whose in holding, number  # noqa: B023

                firsts: dict[Whose, Request] = {}
                for r in sorted(left, key=lambda r: key(r.whose, r.number)):
                    firsts.setdefault(r.tier, r)
                r = min(firsts.values(), key=lambda r: key(r.tier, r.number))
                order.append(r)
                left.remove(r)
                holding |= {r.tier, r.whose}
                tokens = max(1, r.tokens, self.typical[level])
                served[r.whose] += tokens
                served[r.tier] += tokens * 2**20 // r.tier.tier.weight
        return [r for r in order if r.where is State.WAITING]

    def next(self) -> Request | None:
        if raised := self.raised_in_line():
            return raised if raised.weight <= self.room(INTERACTIVE) else None
        for level in sorted(Priority, reverse=True):
            fitting = [r for r in self.in_line(level) if r.weight <= self.room(level)]
            if fitting:
                return self.order(fitting)[0]
        return None

    def claimant(self) -> Request | None:
        """Who takes places from others, once they have been taken."""
        if self.raised_in_line():
            return None
        for level in sorted(Priority, reverse=True):
            for r in self.order(self.in_line(level)):
                if r.where is State.WAITING and (victims := self.victims(r)):
                    for victim in victims:
                        self.set_aside(victim)
                    r.is_boosted = True
                    return r
        return None

    def share(self, r: Request) -> float:
        open_here = [each for each in self.requests if each.priority is r.priority]
        tiers = {each.tier for each in open_here}
        weights = sum(tier.tier.weight for tier in tiers)
        num_in_tier = len({each.whose for each in open_here if each.tier is r.tier})
        higher = [each for each in self.running() if each.level > r.priority]
        places = self.places - weight(higher)
        return max(1.0, places * r.tier.tier.weight / (weights * num_in_tier))

    def victims(self, r: Request) -> list[Request]:
        if self.holds(r.whose) + r.weight > self.share(r):
            return []
        others = [each for each in self.running() if not each.is_raised]
        others = [each for each in others if each.priority is r.priority]
        taken: list[Request] = []

        def above(victim: Request) -> float:
            mine = [each for each in taken if each.whose is victim.whose]
            return self.holds(victim.whose) - weight(mine) - self.share(victim)

        while weight(taken) + self.room(r.priority) < r.weight:
            may = [
                each
                for each in others
                if each not in taken
                and each.whose is not r.whose
                and each.charged >= each.safe_until
                and has_at_most(r, each)
                and above(each) + self.share(each) - each.weight >= int(self.share(each))
            ]
            if not may:
                return []
            taken.append(max(may, key=lambda each: (above(each), each.start)))
            if weight(taken) + weight(self.aside()) > max(1, self.places // 2):
                return []
        return taken

    @property
    def places(self) -> int:
        """Never fewer than the largest request needs."""
        return max([self.num_places, *(r.weight for r in self.requests)])

    # ---- what happens ----

    def open(
        self, number: int, priority: Priority, asked: int, tier: Tier, name: str, tokens: int
    ) -> Request:
        tier_line = self.tiers.setdefault((priority, tier.name), Whose(tier))
        whose = self.accounts.setdefault((priority, tier.name, name), Whose(tier))
        self.lift(priority, tier_line, whose)
        return Request(number, priority, min(asked, self.num_places), tier_line, whose, tokens)

    def lift(self, priority: Priority, tier: Whose, whose: Whose) -> None:
        line = self.in_line(priority)
        if not any(r.tier is tier for r in line):
            last = self.last_tier.get(priority)
            default = certain_of_tier(last) if last else 0
            floor = min([certain_of_tier(r.tier) for r in line], default=default)
            tier.served = max(tier.served, floor)
        if not any(r.whose is whose for r in line):
            whose.served = max(whose.served, self.floor(priority, tier))

    def floor(self, priority: Priority, tier: Whose) -> int:
        line = [r for r in self.in_line(priority) if r.tier is tier]
        if line:
            return certain(self.order(line)[0].whose)
        return certain(tier.last) if tier.last else 0

    def settle(self) -> list[int]:
        started = []
        while request := self.next() or self.claimant():
            if request.where is State.WAITING:
                started.append(request.number)
            else:
                self.moved.add(request.number)
            self.start(request)
        return started

    def start(self, r: Request) -> None:
        levels = [at for at in Priority if at < r.level + (not r.is_boosted)]
        first_in_line = [self.order(self.in_line(level)) for level in levels]
        passed = [order[0] for order in first_in_line if order and order[0] is not r]
        passed += [o for o in self.oldest_running() if o.level < r.level]
        was_aside = r.where is State.ASIDE
        self.num_starts += 1
        r.where, r.start = State.RUNNING, self.num_starts
        if not r.is_raised:
            self.note_out_of_line(r)
        if was_aside:
            r.safe_until = r.charged + 8
        else:
            self.serve(r, max(1, r.tokens))
            r.unconfirmed = r.charged
            for whose in (r.whose, r.tier):
                whose.unconfirmed += r.charged
        for first in passed:
            self.count_skip(first, r)
        self.choose_raised()

    def set_aside(self, r: Request) -> None:
        r.where, r.is_boosted = State.ASIDE, False
        self.moved.add(r.number)

    def note_out_of_line(self, r: Request) -> None:
        line = self.in_line(r.priority)
        if not any(each.whose is r.whose for each in line):
            r.tier.last = r.whose
        if not any(each.tier is r.tier for each in line):
            self.last_tier[r.priority] = r.tier

    def confirm(self, r: Request) -> None:
        for whose in (r.whose, r.tier):
            whose.unconfirmed -= r.unconfirmed
        r.unconfirmed = 0

    def serve(self, r: Request, tokens: int) -> None:
        self.confirm(r)
        r.charged += tokens
        r.whose.served += tokens
        r.tier.served += tokens * 2**20 // r.tier.tier.weight

    def charge(self, r: Request, tokens: int) -> list[int]:
        tokens = max(tokens, 1 - r.charged)
        self.serve(r, tokens)
        if r.is_boosted:
            r.is_boosted = False
            self.moved.add(r.number)
        self.unchecked += tokens
        if self.unchecked < 32:
            return []
        self.unchecked = 0
        return self.settle()

    def remove(self, r: Request) -> list[int]:
        self.drop(r)
        self.choose_raised()
        return self.go_on()

    def resize(self, num_places: int) -> list[int]:
        self.num_places = num_places
        return self.go_on()

    def go_on(self) -> list[int]:
        started = self.settle()
        for oldest in self.oldest_running():
            if weight(self.rivals(oldest)) + oldest.weight <= self.places:
                oldest.skips = 0
        return started

    def drop(self, r: Request) -> None:
        was_in_line = not r.is_running and not r.is_raised
        self.requests.remove(r)
        self.confirm(r)
        if was_in_line:
            self.note_out_of_line(r)
        is_idle = not any(each.whose is r.whose for each in self.requests)
        if is_idle and r.whose.served <= self.floor(r.priority, r.tier):
            self.accounts = {k: whose for k, whose in self.accounts.items() if whose is not r.whose}
        if r.charged:
            self.typical[r.priority] += (r.charged - self.typical[r.priority]) // 5

    # ---- who was overtaken ----

    def oldest_running(self) -> list[Request]:
        by_level = {r.level: r for r in sorted(self.running(), key=lambda r: -r.number)}
        return list(by_level.values())

    def count_skip(self, first: Request, by: Request) -> None:
        if not first.is_running and first.passed_since is None:
            first.passed_since = by.start
        rivals = self.rivals(first)
        earlier = [each for each in rivals if not came_later(each, first)]
        could = weight(earlier) + first.weight <= self.places
        can = weight(rivals) + first.weight <= self.places
        first.skips += came_later(by, first) and could and not can

    def rivals(self, first: Request) -> list[Request]:
        if not first.is_running:
            return self.running(first.level)
        return [r for r in self.running() if r.level > first.level]

    def choose_raised(self) -> None:
        firsts = [order[0] for level in Priority if (order := self.order(self.in_line(level)))]
        firsts += [r for r in self.oldest_running() if not r.is_raised and r.level < INTERACTIVE]
        overdue = [r for r in firsts if r.skips >= self.max_skips]
        if overdue and not any(r.is_raised for r in self.requests):
            raised = min(overdue, key=lambda r: (-r.skips, r.number))
            if not raised.is_running:
                raised.is_raised = True
                self.note_out_of_line(raised)
            else:
                self.moved.add(raised.number)
            raised.is_raised = True


def weight(requests: list[Request]) -> int:
    return sum(request.weight for request in requests)


def certain(whose: Whose) -> int:
    """What a principal was served, without prompts of which nothing has come yet."""
    return whose.served - whose.unconfirmed


def certain_of_tier(tier: Whose) -> int:
    return tier.served - tier.unconfirmed * 2**20 // tier.tier.weight


def has_at_most(one: Request, other: Request) -> bool:
    if one.tier is other.tier:
        return one.whose.served <= other.whose.served
    return one.tier.served <= other.tier.served


def came_later(running: Request, first: Request) -> bool:
    has_passed = first.passed_since is not None and running.start >= first.passed_since
    return running.number > first.number or has_passed


class QueueMachine(RuleBasedStateMachine):
    MAX_WAITING = 20
    TIERS = (Tier("default", 1), Tier("gold", 4))

    @initialize(places=st.integers(1, 6), max_skips=st.integers(1, 3))
    def begin(self, places: int, max_skips: int) -> None:
        self.queue: RequestQueue[int] = RequestQueue(
            model="m", max_running=places, max_waiting=self.MAX_WAITING, max_skips=max_skips
        )
        self.rules = Rules(places, max_skips)
        self.most_places = places
        self.next_ticket = 0
        self.now = 0.0
        self.ranks: dict[int, int] = {}

    @rule(
        priority=st.sampled_from(Priority),
        asked=st.sampled_from([1, 1, 1, 2, 3, 5]),
        tier=st.sampled_from(TIERS),
        name=st.sampled_from("abc"),
        tokens=st.integers(0, 50),
        count=st.integers(1, 3),
    )
    def enter(
        self, priority: Priority, asked: int, tier: Tier, name: str, tokens: int, count: int
    ) -> None:
        for _ in range(count):
            self.enter_one(priority, asked, tier, name, tokens)

    def enter_one(self, priority: Priority, asked: int, tier: Tier, name: str, tokens: int) -> None:
        ticket, self.next_ticket = self.next_ticket, self.next_ticket + 1
        num_waiting = len(self.rules.line())
        request = self.rules.open(ticket, priority, asked, tier, name, tokens)
        self.rules.requests.append(request)
        expected = self.rules.settle()
        most = {BATCH: 16, NORMAL: 18, INTERACTIVE: 20}[priority]

        def enter() -> list[int]:
            return self.queue.enter(
                ticket,
                priority=priority,
                weight=asked,
                now=self.now,
                principal=name,
                tier=tier,
                tokens=tokens,
            )

        if request.where is State.WAITING and num_waiting >= most:
            self.rules.drop(request)
            with pytest.raises(Overloaded) as caught:
                enter()
            assert caught.value.retry_after_s
        else:
            assert enter() == expected
        self.note_moved()

    @precondition(lambda self: any(r.where is not State.WAITING for r in self.rules.requests))
    @rule(data=st.data(), tokens=st.integers(-20, 100))
    def serve(self, data: st.DataObject, tokens: int) -> None:
        let_in = [r for r in self.rules.requests if r.where is not State.WAITING]
        request = data.draw(st.sampled_from(let_in))
        expected = self.rules.charge(request, tokens)
        assert self.queue.charge(request.number, tokens, now=self.now) == expected
        self.note_moved()

    @precondition(lambda self: self.rules.requests)
    @rule(data=st.data(), seconds=st.floats(0, 100))
    def leave(self, data: st.DataObject, seconds: float) -> None:
        """One ends, or gives up waiting."""
        self.now += seconds
        request = data.draw(st.sampled_from(self.rules.requests))
        assert self.queue.leave(request.number, now=self.now) == self.rules.remove(request)
        self.note_moved()

    @rule(places=st.integers(1, 6))
    def resize(self, places: int) -> None:
        """A worker of the model comes, or goes."""
        self.most_places = max(self.most_places, places)
        assert self.queue.resize(places, now=self.now) == self.rules.resize(places)
        assert self.queue.max_running == self.rules.places
        self.note_moved()

    def note_moved(self) -> None:
        here = {r.number for r in self.rules.requests}
        assert set(self.queue.take_moved()) == self.rules.moved & here
        self.rules.moved = set()

    @invariant()
    def agrees(self) -> None:
        line = [r.number for r in self.rules.line()]
        assert list(self.queue.line()) == line
        assert [self.queue.place(t).position for t in line] == list(range(1, len(line) + 1))
        assert self.queue.num_waiting == len(line)
        assert self.queue.num_running == len(self.rules.requests) - len(line)
        for priority in Priority:
            standing = self.queue.standing(priority)
            mine = [r for r in self.rules.requests if r.priority is priority]
            assert standing.running == sum(r.where is not State.WAITING for r in mine)
            assert standing.waiting == len(mine) - standing.running
        for r in self.rules.requests:
            is_aside = r.where is State.ASIDE
            assert self.queue.rank(r.number) == 4 * r.level + r.is_boosted - is_aside

    @invariant()
    def bounds_hold(self) -> None:
        ordinary = [r for r in self.rules.running() if not r.is_raised]
        for priority in Priority:
            own = [r for r in ordinary if r.priority is priority]
            assert weight(own) <= self.most_places
        assert sum(r.is_raised for r in self.rules.requests) <= 1
        aside = [r for r in self.rules.requests if r.where is State.ASIDE]
        assert weight(aside) <= max(1, self.most_places // 2)

    @invariant()
    def later_ones_wait_longer(self) -> None:
        etas = [self.queue.place(ticket).eta_s for ticket in self.queue.line()]
        assert all(eta is None or eta >= 0 for eta in etas)


TestQueue = QueueMachine.TestCase


# ---- nobody starves ----


@given(
    places=st.integers(1, 3),
    max_skips=st.integers(1, 4),
    victim=st.tuples(st.sampled_from(Priority), st.integers(1, 3)),
    rivals=st.lists(
        st.tuples(st.sampled_from(Priority), st.integers(1, 3)), min_size=1, max_size=6
    ),
    data=st.data(),
)
def test_whoever_waits_gets_its_turn_however_many_come_after_it(
    places: int,
    max_skips: int,
    victim: tuple[Priority, int],
    rivals: list[tuple[Priority, int]],
    data: st.DataObject,
) -> None:
    """Rivals of every sort keep coming for ever. What was started ends one day: every other time
    the oldest one, else whichever hurts most."""
    queue: RequestQueue[int] = RequestQueue(
        model="m", max_running=places, max_waiting=10**6, max_skips=max_skips
    )
    running: list[int] = []
    for number in range(3 * places):
        running += queue.enter(number, priority=INTERACTIVE, weight=1, now=0.0)
    me = 3 * places
    running += queue.enter(me, priority=victim[0], weight=victim[1], now=0.0)
    for step in range(20 * places * (max_skips + 3)):
        if me in running:
            return
        for offset, (priority, asked) in enumerate(rivals):
            ticket = me + 1 + step * len(rivals) + offset
            running += queue.enter(ticket, priority=priority, weight=asked, now=0.0)
        is_oldest = step % 2 == 0
        ending = running[0] if is_oldest else data.draw(st.sampled_from(running))
        running.remove(ending)
        running += queue.leave(ending, now=0.0)
    pytest.fail("it still waits")


class Engine:
    """The strictest that there could be: places go to higher priorities, then to who came first,
    and are taken from lower ones at every step."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.left: dict[int, list[int]] = {}  # steps that each sequence of a request still needs
        self.priorities: dict[int, Priority] = {}

    def step(self) -> list[int]:
        """Who has ended."""
        in_order = sorted(self.left, key=lambda ticket: -self.priorities[ticket])
        sequences = [(ticket, i) for ticket in in_order for i in range(len(self.left[ticket]))]
        for ticket, i in [(t, i) for t, i in sequences if self.left[t][i]][: self.places]:
            self.left[ticket][i] -= 1
        return [ticket for ticket, steps in self.left.items() if not any(steps)]


@given(
    places=st.integers(1, 4),
    max_skips=st.integers(1, 4),
    victims=st.lists(
        st.tuples(st.sampled_from([BATCH, NORMAL]), st.integers(1, 4)), min_size=1, max_size=4
    ),
    rivals=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=4),
)
def test_the_less_urgent_end_although_the_model_is_flooded_with_urgent_requests(
    places: int, max_skips: int, victims: list[tuple[Priority, int]], rivals: list[tuple[int, int]]
) -> None:
    """Whether they wait or run, and even with an engine that knows nothing but priorities."""
    queue: RequestQueue[int] = RequestQueue(
        model="m", max_running=places, max_waiting=10**6, max_skips=max_skips
    )
    engine = Engine(places)
    asked: dict[int, tuple[Priority, int, int]] = {}

    def come(priority: Priority, asked_weight: int, length: int) -> None:
        ticket = len(asked)
        asked[ticket] = (priority, min(asked_weight, places), length)
        start(queue.enter(ticket, priority=priority, weight=asked_weight, now=0.0))

    def start(tickets: list[int]) -> None:
        for ticket in tickets:
            priority, num_sequences, length = asked[ticket]
            engine.left[ticket] = [length] * num_sequences
            engine.priorities[ticket] = priority

    for priority, asked_weight in victims:
        come(priority, asked_weight, 3)
    unfinished = set(asked)
    for step in range(400 * len(victims) * max_skips):
        while queue.standing(INTERACTIVE).waiting < 3:
            come(INTERACTIVE, *rivals[step % len(rivals)])
        for ticket in engine.step():
            unfinished.discard(ticket)
            del engine.left[ticket]
            start(queue.leave(ticket, now=0.0))
        if not unfinished:
            return
    pytest.fail(f"{unfinished} never end")


# ---- examples ----


def test_the_urgent_start_over_what_is_less_urgent_and_the_rest_waits_in_line() -> None:
    queue = make(2)
    assert enter(queue, "b1", "b2", "b3", priority=BATCH) == ["b1", "b2"]
    assert enter(queue, "n1", priority=NORMAL) == ["n1"]
    assert enter(queue, "i1", "i2", "i3", priority=INTERACTIVE) == ["i1", "i2"]
    assert list(queue.line()) == ["i3", "b3"]
    assert queue.leave("b1", now=1.0) == []
    assert queue.leave("i1", now=1.0) == ["i3"]
    assert queue.leave("i2", now=1.0) == []
    assert queue.leave("i3", now=1.0) == []  # b2 and n1 have both places
    assert queue.leave("n1", now=1.0) == ["b3"]


def test_batch_is_overtaken_max_skips_times_and_then_keeps_its_place() -> None:
    queue = make(1, max_skips=3)
    enter(queue, "first", priority=INTERACTIVE)
    enter(queue, "batch", priority=BATCH)
    enter(queue, *(f"i{number}" for number in range(9)), priority=INTERACTIVE)
    order = ["first"]
    while (started := queue.leave(order[-1], now=0.0)) and len(order) < 6:
        order += started
    assert order == ["first", "i0", "i1", "i2", "batch", "i3"]


def test_a_large_one_is_passed_by_small_ones_that_fit_but_not_for_ever() -> None:
    queue = make(4, max_skips=2)
    enter(queue, "a")
    assert enter(queue, "large", weight=4) == []
    assert enter(queue, "b", "c", "d") == ["b", "c", "d"]  # one of them before "a" ended
    assert enter(queue, "e") == []
    assert queue.leave("a", now=0.0) == ["e"]
    assert queue.leave("b", now=0.0) == []


def test_a_request_that_waits_for_its_elders_is_not_overtaken() -> None:
    """Urgent requests that start beside the batch jobs do not take the next one's place."""
    queue = make(1, max_skips=1)
    enter(queue, "b1", "b2", priority=BATCH)
    for number in range(5):
        enter(queue, f"i{number}", priority=INTERACTIVE)
        queue.leave(f"i{number}", now=0.0)
    assert list(queue.line()) == ["b2"]
    assert queue.leave("b1", now=0.0) == ["b2"]


def test_one_that_runs_is_not_set_aside_for_ever() -> None:
    queue = make(1, max_skips=2)
    enter(queue, "batch", priority=BATCH)
    assert enter(queue, "i1", "i2", "i3", "i4", priority=INTERACTIVE) == ["i1"]
    assert queue.leave("i1", now=0.0) == ["i2"]
    assert queue.leave("i2", now=0.0) == []  # the engine has nothing but "batch" now
    assert queue.leave("batch", now=0.0) == ["i3"]


def test_one_that_runs_and_has_its_place_back_was_not_set_aside_for_ever() -> None:
    queue = make(1, max_skips=2)
    enter(queue, "batch", priority=BATCH)
    for number in range(9):
        assert enter(queue, f"i{number}", priority=INTERACTIVE) == [f"i{number}"]
        queue.leave(f"i{number}", now=0.0)


def test_those_who_waited_too_long_go_first_one_at_a_time() -> None:
    queue = make(2, max_skips=1)
    enter(queue, "i1", "i2", priority=INTERACTIVE)
    enter(queue, "b1", "b2", "b3", priority=BATCH)
    enter(queue, *(f"i{number}" for number in range(3, 9)), priority=INTERACTIVE)
    assert queue.leave("i1", now=0.0) == ["i3"]
    assert queue.leave("i2", now=0.0) == ["b1"]
    assert queue.leave("i3", now=0.0) == ["i4"]
    assert queue.leave("i4", now=0.0) == ["i5"]  # "b2" has been overtaken, but "b1" still runs
    assert queue.leave("b1", now=0.0) == ["b2"]
    assert queue.leave("i5", now=0.0) == ["i6"]


def test_more_places_let_more_in_and_fewer_end_nothing() -> None:
    queue = make(2)
    assert enter(queue, "a", "b", "c", "d") == ["a", "b"]
    assert queue.resize(4, now=1.0) == ["c", "d"]
    assert queue.resize(2, now=2.0) == []
    assert enter(queue, "e") == []
    assert [queue.leave(ticket, now=3.0) for ticket in "abc"] == [[], [], ["e"]]


def test_one_that_is_larger_than_what_is_left_is_let_in_all_the_same() -> None:
    queue = make(4)
    assert enter(queue, "a", weight=4) == ["a"]
    assert enter(queue, "b", weight=4) == []
    assert queue.resize(1, now=1.0) == []
    assert enter(queue, "c", weight=4) == []  # it counts as one by now
    assert queue.leave("a", now=2.0) == ["b"]
    assert queue.leave("b", now=3.0) == ["c"]
    assert queue.max_running == 1


def test_a_full_queue_refuses_the_new_one_and_says_when_to_come_back() -> None:
    queue = make(1, max_waiting=8)
    enter(queue, "r", priority=INTERACTIVE)
    queue.leave("r", now=2.0)
    enter(queue, "running")
    enter(queue, *(f"b{number}" for number in range(6)), priority=BATCH)
    with pytest.raises(Overloaded, match=r"6 .*is 8, of which 2 are kept for higher") as caught:
        enter(queue, "one too many", priority=BATCH)
    assert caught.value.retry_after_s == 14.0  # seven have to end first
    enter(queue, "n")
    with pytest.raises(Overloaded, match="of which 1 "):
        enter(queue, "n2")
    enter(queue, "i1", priority=INTERACTIVE)  # starts: the place is held by a lower priority
    enter(queue, "i2", priority=INTERACTIVE)
    with pytest.raises(Overloaded, match=r"max_queued_requests is 8 \(") as refused:
        enter(queue, "i3", priority=INTERACTIVE)
    assert refused.value.retry_after_s == 4.0
    assert queue.num_waiting == 8


def test_a_full_queue_does_not_refuse_who_need_not_wait() -> None:
    queue = make(1, max_waiting=1)
    enter(queue, "b1", "b2", priority=BATCH)
    assert enter(queue, "i", priority=INTERACTIVE) == ["i"]


def test_estimates_count_places_and_only_who_is_in_front() -> None:
    queue = make(4)
    enter(queue, "b", priority=BATCH)
    queue.leave("b", now=60.0)
    enter(queue, "i", priority=INTERACTIVE)
    queue.leave("i", now=2.0)
    enter(queue, "b1", "b2", priority=BATCH, weight=2)
    assert queue.standing(INTERACTIVE) == Standing(running=0, waiting=0, eta_s=0.0)
    enter(queue, "b3", "b4", priority=BATCH, weight=2)
    assert queue.place("b3") == Place(1, 30.0)  # half of the places must become free
    assert queue.place("b4") == Place(2, 60.0)
    enter(queue, "i1", "i2", "i3", "i4", "i5", priority=INTERACTIVE)
    assert queue.place("i5") == Place(1, 0.5)  # whatever the batch jobs take
    assert queue.standing(BATCH).waiting == 2


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=20))
def test_the_estimate_stays_within_what_was_seen(services: list[float]) -> None:
    queue = make(1)
    now = 0.0
    for seconds in services:
        queue.enter("one", priority=NORMAL, weight=1, now=now)
        now += seconds
        queue.leave("one", now=now)
    enter(queue, "running", "waiting")
    eta = queue.place("waiting").eta_s
    assert eta is not None
    assert min(services) - 0.001 <= eta <= max(services) + 0.001
