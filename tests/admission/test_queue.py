"""The queue in front of a model keeps its promises whatever comes and goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from openclawctl.wire.errors import Overloaded
from openclawd.admission.queue import RequestQueue


class QueueMachine(RuleBasedStateMachine):
    """Compares the queue with two plain lists."""

    MAX_RUNNING = 3
    MAX_WAITING = 4

    def __init__(self) -> None:
        super().__init__()
        self.queue: RequestQueue[int] = RequestQueue(
            model="m", max_running=self.MAX_RUNNING, max_waiting=self.MAX_WAITING
        )
        self.running: list[int] = []
        self.waiting: list[int] = []
        self.next_ticket = 0
        self.now = 0.0

    @rule()
    def enter(self) -> None:
        ticket, self.next_ticket = self.next_ticket, self.next_ticket + 1
        if len(self.running) < self.MAX_RUNNING:
            assert self.queue.enter(ticket, now=self.now)
            self.running.append(ticket)
        elif len(self.waiting) < self.MAX_WAITING:
            assert not self.queue.enter(ticket, now=self.now)
            self.waiting.append(ticket)
        else:
            with pytest.raises(Overloaded) as caught:
                self.queue.enter(ticket, now=self.now)
            assert caught.value.retry_after_s

    @precondition(lambda self: self.running)
    @rule(data=st.data(), seconds=st.floats(0, 100))
    def finish(self, data: st.DataObject, seconds: float) -> None:
        self.now += seconds
        ticket = data.draw(st.sampled_from(self.running))
        self.running.remove(ticket)
        expected = self.waiting[:1]
        assert self.queue.leave(ticket, now=self.now) == expected
        self.running += expected
        del self.waiting[:1]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(ticket)
        assert self.queue.leave(ticket, now=self.now) == []

    @invariant()
    def agrees(self) -> None:
        assert self.queue.num_running == len(self.running)
        assert self.queue.num_waiting == len(self.waiting)
        assert [self.queue.position(t) for t in self.waiting] == [
            i + 1 for i in range(len(self.waiting))
        ]
        etas = [self.queue.eta_s(t) for t in self.waiting]
        assert all(eta is None or eta >= 0 for eta in etas)
        assert etas == sorted(etas, key=lambda eta: eta or 0)


TestQueue = QueueMachine.TestCase


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=20))
def test_the_estimate_stays_within_what_was_seen(services: list[float]) -> None:
    queue: RequestQueue[str] = RequestQueue(model="m", max_running=1, max_waiting=9)
    now = 0.0
    for seconds in services:
        queue.enter("one", now=now)
        now += seconds
        queue.leave("one", now=now)
    queue.enter("running", now=now)
    queue.enter("waiting", now=now)
    eta = queue.eta_s("waiting")
    assert eta is not None
    assert min(services) - 0.001 <= eta <= max(services) + 0.001
