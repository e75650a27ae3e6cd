"""The queue in front of a model keeps its promises whatever comes and goes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from openclawctl.wire.errors import Overloaded
from openclawd.admission.queue import Place, Priority, RequestQueue, Standing

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
class Request:
    number: int
    priority: Priority
    weight: int
    skips: int = 0
    is_running: bool = False
    is_raised: bool = False

    @property
    def level(self) -> Priority:
        return INTERACTIVE if self.is_raised else self.priority


class Rules:
    """The rules of the queue, told by sorting and counting everything each time."""

    def __init__(self, places: int, max_skips: int) -> None:
        self.places = places
        self.max_skips = max_skips
        self.requests: list[Request] = []

    def running(self, level: Priority = BATCH) -> list[Request]:
        return [r for r in self.requests if r.is_running and r.level >= level]

    def line(self) -> list[Request]:
        waiting = [r for r in self.requests if not r.is_running]
        return sorted(waiting, key=lambda r: (not r.is_raised, -r.priority, r.number))

    def settle(self) -> list[int]:
        started = []
        while request := self.next():
            request.is_running = True
            started.append(request.number)
            self.count_skips(request)
            self.choose_raised()
        return started

    def next(self) -> Request | None:
        for request in self.line():
            has_room = weight(self.running(request.level)) + request.weight <= self.places
            if has_room:
                return request
            if request.is_raised:
                return None
        return None

    def count_skips(self, by: Request) -> None:
        for first in self.firsts():
            rivals = self.rivals(first)
            earlier = [r for r in rivals if r.number < first.number]
            could = weight(earlier) + first.weight <= self.places
            can = weight(rivals) + first.weight <= self.places
            if by in rivals and by.number > first.number:
                first.skips += could and not can

    def firsts(self) -> list[Request]:
        """The oldest of each priority that waits, and of each that runs."""
        found = []
        for is_running in (False, True):
            for priority in Priority:
                those = [r for r in self.requests if r.is_running is is_running]
                found += [r for r in those if r.priority is priority and not r.is_raised][:1]
        return found

    def rivals(self, first: Request) -> list[Request]:
        if not first.is_running:
            return self.running(first.level)
        return [r for r in self.running() if r.level > first.level]

    def choose_raised(self) -> None:
        overdue = [r for r in self.firsts() if r.skips >= self.max_skips]
        if overdue and not any(r.is_raised for r in self.requests):
            min(overdue, key=lambda r: r.number).is_raised = True

    def remove(self, number: int) -> list[int]:
        self.requests = [r for r in self.requests if r.number != number]
        self.choose_raised()
        started = self.settle()
        for first in self.firsts():
            if first.is_running and weight(self.rivals(first)) + first.weight <= self.places:
                first.skips = 0
        return started


def weight(requests: list[Request]) -> int:
    return sum(request.weight for request in requests)


class QueueMachine(RuleBasedStateMachine):
    MAX_WAITING = 20

    @initialize(places=st.integers(1, 4), max_skips=st.integers(1, 3))
    def begin(self, places: int, max_skips: int) -> None:
        self.queue: RequestQueue[int] = RequestQueue(
            model="m", max_running=places, max_waiting=self.MAX_WAITING, max_skips=max_skips
        )
        self.rules = Rules(places, max_skips)
        self.next_ticket = 0
        self.now = 0.0

    @rule(priority=st.sampled_from(Priority), asked=st.integers(1, 5))
    def enter(self, priority: Priority, asked: int) -> None:
        ticket, self.next_ticket = self.next_ticket, self.next_ticket + 1
        request = Request(ticket, priority, min(asked, self.rules.places))
        num_waiting = len(self.rules.line())
        self.rules.requests.append(request)
        expected = self.rules.settle()
        most = {BATCH: 16, NORMAL: 18, INTERACTIVE: 20}[priority]
        if not request.is_running and num_waiting >= most:
            self.rules.requests.remove(request)
            with pytest.raises(Overloaded) as caught:
                self.queue.enter(ticket, priority=priority, weight=asked, now=self.now)
            assert caught.value.retry_after_s
        else:
            started = self.queue.enter(ticket, priority=priority, weight=asked, now=self.now)
            assert started == expected

    @precondition(lambda self: self.rules.requests)
    @rule(data=st.data(), seconds=st.floats(0, 100))
    def leave(self, data: st.DataObject, seconds: float) -> None:
        """One ends, or gives up waiting."""
        self.now += seconds
        number = data.draw(st.sampled_from([r.number for r in self.rules.requests]))
        assert self.queue.leave(number, now=self.now) == self.rules.remove(number)

    @invariant()
    def agrees(self) -> None:
        line = [r.number for r in self.rules.line()]
        assert list(self.queue.line()) == line
        assert [self.queue.place(t).position for t in line] == list(range(1, len(line) + 1))
        assert self.queue.num_waiting == len(line)
        assert self.queue.num_running == len(self.rules.running())
        for priority in Priority:
            standing = self.queue.standing(priority)
            mine = [r for r in self.rules.requests if r.priority is priority]
            assert standing.running == sum(r.is_running for r in mine)
            assert standing.waiting == len(mine) - standing.running

    @invariant()
    def bounds_hold(self) -> None:
        ordinary = [r for r in self.rules.running() if not r.is_raised]
        for priority in Priority:
            own = [r for r in ordinary if r.priority is priority]
            assert weight(own) <= self.rules.places
        assert sum(r.is_raised for r in self.rules.requests) <= 1

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
