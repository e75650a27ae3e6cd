"""Lanes against a model: never too many inside, nobody forgotten, first come first served."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from openclawctl.wire.errors import Overloaded
from openclawd.admission.lanes import LaneTable, lanes_of, longest_wait
from openclawd.admission.limit_rules import LimitRule
from openclawd.admission.subjects import Per, Subject

RULES = [
    LimitRule("everybody", per=Per.ALL, max_parallel=4),
    LimitRule("each", per=Per.PRINCIPAL, max_parallel=2, max_queued=3),
    LimitRule("model", per=Per.MODEL, max_parallel=3),
    LimitRule("line", per=Per.TIER, max_queued=6),
]
subjects = st.builds(
    Subject,
    st.sampled_from(["user:a", "user:b", "user:c"]),
    tier=st.just("t"),
    model=st.sampled_from(["m", "n"]),
)
rule_sets = st.lists(st.sampled_from(RULES), unique=True).map(
    lambda chosen: [rule for rule in RULES if rule in chosen]
)


class LaneMachine(RuleBasedStateMachine):
    """The model knows who came, in which order, and who may go on; the rest is counted anew."""

    def __init__(self) -> None:
        super().__init__()
        self.table: LaneTable[int] = LaneTable()
        self.came: dict[int, tuple[list[LimitRule], Subject]] = {}
        self.passed: set[int] = set()
        self.started: set[int] = set()
        self.waited: set[int] = set()
        self.next = 0

    def buckets(self, ticket: int) -> list[tuple[str, str]]:
        rules, subject = self.came[ticket]
        return [(rule.name, rule.per.bucket(subject)) for rule in rules]

    def num_waiting(self, bucket: tuple[str, str]) -> int:
        return sum(bucket in self.buckets(ticket) for ticket in self.waited - self.started)

    def is_full(self, ticket: int) -> bool:
        rules, subject = self.came[ticket]
        return any(
            rule.max_queued is not None
            and self.num_waiting((rule.name, rule.per.bucket(subject))) >= rule.max_queued
            for rule in rules
        )

    @rule(rules=rule_sets, subject=subjects)
    def come(self, rules: list[LimitRule], subject: Subject) -> None:
        ticket, self.next = self.next, self.next + 1
        self.came[ticket] = rules, subject
        would_be_full = self.is_full(ticket)
        try:
            self.table.enter(ticket, lanes_of(rules, subject))
        except Overloaded:
            assert would_be_full
            del self.came[ticket]
            return
        if self.table.may_go_on(ticket):
            self.passed.add(ticket)
        else:
            assert not would_be_full
            self.waited.add(ticket)

    @precondition(lambda self: self.passed - self.started)
    @rule(data=st.data())
    def wait_at_the_model(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.passed - self.started)))
        is_refused = ticket not in self.waited and self.is_full(ticket)
        if is_refused:
            with pytest.raises(Overloaded):
                self.table.wait(ticket)
        else:
            self.table.wait(ticket)
            self.waited.add(ticket)

    @precondition(lambda self: self.passed - self.started)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.passed - self.started)))
        self.table.start(ticket)
        self.started.add(ticket)

    @precondition(lambda self: self.came)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.go(data.draw(st.sampled_from(sorted(self.came))))

    def go(self, ticket: int) -> None:
        called = self.table.leave(ticket)
        del self.came[ticket]
        for known in (self.passed, self.started, self.waited):
            known.discard(ticket)
        for other in called:
            assert other in self.came
            assert other not in self.passed
            same = [t for t, whose in self.came.items() if whose == self.came[other]]
            assert other == min(set(same) - self.passed), "somebody like it came before it"
            self.passed.add(other)

    @invariant()
    def never_too_many(self) -> None:
        self.table.check()
        inside = Counter(bucket for ticket in self.passed for bucket in self.buckets(ticket))
        most = {rule.name: rule.max_parallel for rule in RULES}
        for (name, _), num_inside in inside.items():
            assert num_inside <= (most[name] or num_inside)
        assert {t for t in self.came if self.table.may_go_on(t)} == self.passed
        assert self.table.num_inside == len(self.passed)
        assert self.table.num_waiting == len(self.came) - len(self.passed)
        assert {t for t in self.came if self.table.is_queued(t)} == self.waited - self.started

    def teardown(self) -> None:
        while self.came:
            # Whoever may go on leaves in the end: by that alone everybody gets through.
            assert self.passed, "all wait, and for nobody"
            self.go(min(self.passed))
        assert not self.table._states
        assert not self.table._members


TestLanes = LaneMachine.TestCase


def test_who_waits_for_its_own_user_holds_up_nobody_else() -> None:
    table: LaneTable[str] = LaneTable()
    everybody, each = RULES[0], LimitRule("each", max_parallel=1)
    for name in ("a1", "a2", "a3", "b1"):
        table.enter(name, lanes_of([everybody, each], Subject(f"user:{name[0]}")))
    assert [table.may_go_on(name) for name in ("a1", "a2", "a3", "b1")] == [1, 0, 0, 1]
    assert [table.position(name) for name in ("a2", "a3")] == [1, 2]
    assert table.leave("a1") == ["a2"]


def test_a_refusal_names_the_rule_and_the_bucket() -> None:
    table: LaneTable[int] = LaneTable()
    lanes = lanes_of([LimitRule("few", max_parallel=1, max_queued=1)], Subject("user:a"))
    table.enter(1, lanes)
    table.enter(2, lanes)
    with pytest.raises(Overloaded, match="1 requests of user:a wait already; limit few allows 1"):
        table.enter(3, lanes)
    assert table.leave(1) == [2]
    table.enter(4, lanes_of([LimitRule("none", max_queued=0)], Subject("user:b")))
    assert table.may_go_on(4), "one that need not wait is not refused"
    with pytest.raises(Overloaded, match="limit none allows 0"):
        table.wait(4)


@given(times=st.lists(st.none() | st.floats(0.1, 9)))
def test_the_shortest_patience_counts(times: list[float | None]) -> None:
    rules = [LimitRule(str(n), max_queue_s=time) for n, time in enumerate(times)]
    found = longest_wait(rules)
    known = [time for time in times if time is not None]
    assert found == ((str(times.index(min(known))), min(known)) if known else None)
