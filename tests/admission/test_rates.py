"""Who may go on at once, who waits in which line, and who is refused with what numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from openclawctl.wire.errors import LimitExceeded, RateLimited
from openclawd.admission.rates import (
    Grant,
    OnExceed,
    RateLimiter,
    RatePlace,
    RateRule,
    RateStanding,
)
from openclawd.admission.subjects import Match, Per, Subject

if TYPE_CHECKING:
    from collections.abc import Sequence

RULE = RateRule(
    name="per-user",
    match=Match(),
    per=Per.PRINCIPAL,
    tokens=100,
    requests=None,
    window_s=60.0,
    on_exceed=OnExceed.QUEUE,
    max_wait_s=1000.0,
    max_waiting=100,
)
REJECT = replace(RULE, on_exceed=OnExceed.REJECT)
ALL = replace(RULE, name="all", per=Per.ALL)
ALICE, BOB = Subject("user:alice"), Subject("user:bob")


def limiter(*rules: RateRule) -> RateLimiter[str]:
    return RateLimiter(rules)


def names(ended: Sequence[tuple[str, Grant | RateLimited]]) -> list[str]:
    assert all(isinstance(outcome, Grant) for _, outcome in ended)
    return [ticket for ticket, _ in ended]


def admit(rates: RateLimiter[str], subject: Subject, prompt_tokens: int, *, now: float) -> Grant:
    grant = rates.ask("now", subject, prompt_tokens=prompt_tokens, now=now)
    assert grant is not None
    return grant


# ---- whatever comes and goes ----

A_MICROSECOND = 1e-6
"""Windows count in these; 16.4 - 5.0 is less than 11.4 in floats."""


class RatesMachine(RuleBasedStateMachine):
    """Four rules of every sort, and three callers."""

    @initialize(
        tokens=st.integers(5, 30), requests=st.integers(1, 4), most=st.sampled_from([3, 100])
    )
    def begin(self, tokens: int, requests: int, most: int) -> None:
        self.rules = [
            replace(RULE, tokens=tokens, window_s=7.0, max_wait_s=40.0, max_waiting=most),
            replace(ALL, tokens=2 * tokens, requests=2 * requests, window_s=5.0),
            replace(RULE, name="calls", tokens=None, requests=requests, window_s=3.0),
            replace(REJECT, name="app", match=Match(app=("x",)), per=Per.APP, tokens=tokens),
        ]
        self.rates: RateLimiter[int] = RateLimiter(self.rules)
        self.now = 0.0
        self.next_ticket = 0
        self.asked: dict[int, tuple[Subject, int, float]] = {}
        self.grants: list[Grant] = []
        self.taken: list[tuple[float, Subject, int]] = []  # what was admitted: when, whose, tokens

    @rule(
        principal=st.sampled_from(["a", "b", "c"]),
        app=st.sampled_from(["", "", "x"]),
        prompt_tokens=st.integers(1, 12),
    )
    def ask(self, principal: str, app: str, prompt_tokens: int) -> None:
        subject = Subject(principal, app=app)
        ticket, self.next_ticket = self.next_ticket, self.next_ticket + 1
        try:
            grant = self.rates.ask(ticket, subject, prompt_tokens=prompt_tokens, now=self.now)
        except LimitExceeded:
            assert prompt_tokens > self.rules[0].tokens  # type: ignore[operator]
        except RateLimited:
            pass  # exactly when to ask again has a test of its own
        else:
            self.asked[ticket] = (subject, prompt_tokens, self.now)
            if grant is not None:
                self.note(ticket, grant, self.lines())

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 2.5, 10.0]))
    def wait(self, seconds: float) -> None:
        """Time passes as a timer sees it: `wake` is called whenever it is due."""
        end = self.now + seconds
        while (at := self.rates.next_at()) is not None and at <= end:
            self.now = max(self.now, at)
            self.wake()
        self.now = end

    @precondition(lambda self: self.rates.num_waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        waiting = [ticket for ticket in self.asked if self.rates.is_waiting(ticket)]
        index = data.draw(st.integers(0, len(waiting) - 1))
        self.rates.leave(waiting[index], now=self.now)
        self.wake()

    @precondition(lambda self: self.grants)
    @rule(data=st.data(), tokens=st.integers(1, 20), is_refund=st.booleans())
    def go_on(self, data: st.DataObject, tokens: int, is_refund: bool) -> None:
        """Completion tokens come, or it ends before anything was computed."""
        grant = self.grants[data.draw(st.integers(0, len(self.grants) - 1))]
        if is_refund:
            self.grants.remove(grant)
            self.rates.refund(grant, now=self.now)
            self.wake()
        else:
            self.rates.charge(grant, tokens, now=self.now)

    def wake(self) -> None:
        before = self.lines()
        ended = self.rates.wake(self.now)
        stayed = self.lines().items() & before.items()
        for ticket, outcome in ended:
            if isinstance(outcome, Grant):
                self.note(ticket, outcome, dict(stayed))
            else:
                assert outcome.retry_after_s is not None

    def note(self, ticket: int, grant: Grant, waiting: dict[int, tuple[str, str]]) -> None:
        """It was admitted: nobody that came earlier waits in a line for a count it takes of."""
        subject, prompt_tokens, _ = self.asked[ticket]
        keys = {bucket.key for bucket in grant.buckets.each}  # a rule's name and whose count
        assert not [other for other, key in waiting.items() if other < ticket and key in keys]
        self.grants.append(grant)
        self.taken.append((self.now, subject, prompt_tokens))

    def lines(self) -> dict[int, tuple[str, str]]:
        """In which line everybody waits."""
        return {
            ticket: self.bucket_of_line(ticket)
            for ticket in self.asked
            if self.rates.is_waiting(ticket)
        }

    def bucket_of_line(self, ticket: int) -> tuple[str, str]:
        name = self.rates.place(ticket, now=self.now).rule
        (per,) = [each.per for each in self.rules if each.name == name]
        return name, per.bucket(self.asked[ticket][0])

    @invariant()
    def requests_stay_in_their_limits(self) -> None:
        """They are never given back and never go into debt."""
        for index, span in ((1, 5.0), (2, 3.0)):
            most = self.rules[index].requests
            assert most is not None
            for principal in ("a", "b", "c") if index == 2 else ("",):
                recent = [
                    at
                    for at, subject, _ in self.taken
                    if at > self.now - span + A_MICROSECOND and principal in ("", subject.principal)
                ]
                assert len(recent) <= most

    @invariant()
    def whoever_waits_is_in_one_line_that_will_be_looked_at(self) -> None:
        waiting = [ticket for ticket in self.asked if self.rates.is_waiting(ticket)]
        assert len(waiting) == self.rates.num_waiting
        at = self.rates.next_at()
        assert (at is None) == (not waiting)
        for ticket in waiting:
            line = self.rates.line(ticket)
            assert line == sorted(line)
            place = self.rates.place(ticket, now=self.now)
            assert line[place.position - 1] == ticket
            assert place.rule != "app"
            assert at is not None
            if place.position == 1:
                assert at <= self.now + place.eta_s + 1e-6
            assert self.asked[ticket][2] + 1000.0 >= self.now

    def teardown(self) -> None:
        """All of them come to an end, if only time passes."""
        if not hasattr(self, "rates"):
            return
        for _ in range(10_000):
            at = self.rates.next_at()
            if at is None:
                break
            self.now = max(self.now, at)
            self.wake()
        assert self.rates.num_waiting == 0
        assert self.rates.pop_changed_lines() == []


TestRates = RatesMachine.TestCase


@given(
    before=st.lists(
        st.tuples(st.floats(0, 20), st.integers(1, 60), st.integers(0, 300)), max_size=8
    ),
    prompt_tokens=st.integers(1, 100),
)
def test_the_time_to_try_again_is_exact(
    before: list[tuple[float, int, int]], prompt_tokens: int
) -> None:
    """Whatever several rules have counted, debts included: a moment earlier it is refused."""
    rates = limiter(REJECT, replace(REJECT, name="second", per=Per.ALL, tokens=120, window_s=11.0))
    now = 0.0
    for wait, tokens, completion in before:
        now += wait
        try:
            rates.charge(admit(rates, ALICE, tokens, now=now), completion, now=now)
        except RateLimited:
            continue
    wait_s = seconds_until_admitted(rates, prompt_tokens, now=now)
    if wait_s:
        with pytest.raises(RateLimited):
            admit(rates, ALICE, prompt_tokens, now=now + wait_s - 0.001)
        admit(rates, ALICE, prompt_tokens, now=now + wait_s)


def seconds_until_admitted(rates: RateLimiter[str], prompt_tokens: int, *, now: float) -> float:
    try:
        admit(rates, ALICE, prompt_tokens, now=now)
    except RateLimited as problem:
        return problem.retry_after_s or 0.0
    return 0.0


# ---- examples ----


def test_a_refusal_names_the_rule_and_the_numbers() -> None:
    rates = limiter(REJECT)
    admit(rates, ALICE, 70, now=10.0)
    with pytest.raises(RateLimited) as caught:
        admit(rates, ALICE, 40, now=30.0)
    assert caught.value.message == (
        "rate limit per-user allows 100 tokens in 1m to user:alice: 70 are used, and this request "
        "takes 40"
    )
    assert caught.value.retry_after_s == 40.0
    assert caught.value.hint == "try again in 40.0s"
    admit(rates, BOB, 100, now=30.0)


def test_what_is_longer_than_the_limit_is_refused_for_good_whatever_the_rule_says() -> None:
    for each in (RULE, REJECT):
        with pytest.raises(
            LimitExceeded, match="has 101 tokens; rate limit per-user allows 100 in 1m"
        ):
            admit(limiter(each), ALICE, 101, now=0.0)


def test_nothing_is_taken_unless_all_rules_have_room() -> None:
    rates = limiter(
        replace(REJECT, tokens=None, requests=2), replace(REJECT, name="all", per=Per.ALL)
    )
    admit(rates, ALICE, 90, now=0.0)
    for _ in range(5):
        with pytest.raises(RateLimited, match="limit all allows 100 tokens in 1m to all together"):
            admit(rates, ALICE, 20, now=1.0)
    admit(rates, ALICE, 10, now=1.0)
    with pytest.raises(RateLimited, match="2 requests in 1m to user:alice: 2 are used"):
        admit(rates, ALICE, 1, now=60.0 - 0.5)


def test_completion_tokens_go_into_debt_and_the_long_run_keeps_the_rate() -> None:
    rates = limiter(REJECT)
    grant = admit(rates, ALICE, 100, now=0.0)
    rates.charge(grant, 250, now=1.0)
    (standing,) = rates.standing(ALICE, now=1.0)
    assert standing == RateStanding("per-user", "tokens", 350, 100, 60.0, 179.0)
    with pytest.raises(RateLimited) as caught:
        admit(rates, ALICE, 100, now=1.0)
    assert caught.value.retry_after_s == 239.0
    admit(rates, ALICE, 50, now=180.0)


def test_tokens_are_given_back_but_the_request_stays_counted() -> None:
    rates = limiter(replace(REJECT, requests=2))
    rates.refund(admit(rates, ALICE, 100, now=0.0), now=1.0)
    admit(rates, ALICE, 100, now=1.0)
    used = {standing.unit: standing.used for standing in rates.standing(ALICE, now=1.0)}
    assert used == {"tokens": 100, "requests": 2}


def test_a_request_that_goes_on_as_another_one_counts_once() -> None:
    rates = limiter(replace(REJECT, requests=2))
    rates.undo(admit(rates, ALICE, 100, now=0.0), now=1.0)
    admit(rates, ALICE, 100, now=1.0)
    used = {standing.unit: standing.used for standing in rates.standing(ALICE, now=1.0)}
    assert used == {"tokens": 100, "requests": 1}


def test_those_who_wait_go_on_in_order_when_their_need_is_met() -> None:
    rates = limiter(RULE)
    admit(rates, ALICE, 60, now=0.0)
    admit(rates, ALICE, 40, now=10.0)
    for ticket, tokens in (("large", 80), ("small", 1), ("last", 30)):
        assert rates.ask(ticket, ALICE, prompt_tokens=tokens, now=20.0) is None
    assert rates.place("large", now=20.0) == RatePlace(1, 50.0, "per-user")
    assert rates.place("small", now=20.0) == RatePlace(2, 50.0, "per-user")
    assert rates.place("last", now=20.0) == RatePlace(3, 110.0, "per-user")
    assert rates.next_at() == 70.0
    assert rates.wake(69.9) == []
    assert names(rates.wake(70.0)) == ["large", "small"]
    assert rates.next_at() == 130.0
    assert names(rates.wake(130.0)) == ["last"]
    assert rates.next_at() is None


def test_who_waits_for_its_own_count_does_not_hold_up_others_in_a_common_one() -> None:
    rates = limiter(RULE, replace(ALL, tokens=200))
    admit(rates, ALICE, 100, now=0.0)
    assert rates.ask("alice", ALICE, prompt_tokens=50, now=1.0) is None
    admit(rates, BOB, 100, now=1.0)
    assert rates.ask("bob", BOB, prompt_tokens=10, now=2.0) is None
    assert rates.place("bob", now=2.0) == RatePlace(1, 59.0, "per-user")
    assert names(rates.wake(60.0)) == ["alice"]
    assert names(rates.wake(61.0)) == ["bob"]


def test_one_that_has_room_in_its_own_count_then_waits_in_the_common_line_by_arrival() -> None:
    rates = limiter(RULE, ALL)
    admit(rates, ALICE, 60, now=0.0)
    admit(rates, ALICE, 40, now=30.0)
    assert rates.ask("alice", ALICE, prompt_tokens=50, now=31.0) is None
    assert rates.ask("bob", BOB, prompt_tokens=70, now=32.0) is None
    assert [rates.place(ticket, now=32.0).rule for ticket in ("alice", "bob")] == [
        "per-user",
        "all",
    ]
    assert names(rates.wake(60.0)) == ["alice"]
    assert rates.place("bob", now=60.0) == RatePlace(1, 60.0, "all")


def test_one_that_gives_up_lets_the_next_go_on() -> None:
    rates = limiter(RULE)
    admit(rates, ALICE, 60, now=0.0)
    assert rates.ask("large", ALICE, prompt_tokens=80, now=1.0) is None
    assert rates.ask("small", ALICE, prompt_tokens=40, now=2.0) is None
    rates.leave("large", now=3.0)
    assert rates.next_at() == 3.0
    assert names(rates.wake(3.0)) == ["small"]


def test_what_is_given_back_lets_the_first_in_line_go_on() -> None:
    rates = limiter(RULE)
    grant = admit(rates, ALICE, 60, now=0.0)
    assert rates.ask("next", ALICE, prompt_tokens=80, now=1.0) is None
    rates.refund(grant, now=2.0)
    assert names(rates.wake(2.0)) == ["next"]


def test_what_runs_makes_those_in_line_wait_longer() -> None:
    rates = limiter(RULE)
    grant = admit(rates, ALICE, 60, now=0.0)
    assert rates.ask("next", ALICE, prompt_tokens=80, now=1.0) is None
    rates.charge(grant, 40, now=30.0)
    assert rates.wake(60.0) == []
    assert names(rates.wake(90.0)) == ["next"]


def test_who_would_wait_too_long_is_refused_at_once() -> None:
    rates = limiter(replace(RULE, max_wait_s=30.0))
    admit(rates, ALICE, 100, now=0.0)
    with pytest.raises(RateLimited, match=r"would wait longer than 30.0s \(max_wait\)") as caught:
        rates.ask("early", ALICE, prompt_tokens=1, now=20.0)
    assert caught.value.retry_after_s == 40.0
    assert rates.ask("in time", ALICE, prompt_tokens=1, now=30.0) is None


def test_whose_patience_ends_is_told_when_to_try_again() -> None:
    rates = limiter(replace(RULE, max_wait_s=30.0))
    grant = admit(rates, ALICE, 100, now=0.0)
    assert rates.ask("next", ALICE, prompt_tokens=1, now=40.0) is None
    rates.charge(grant, 10, now=41.0)
    rates.charge(grant, 100, now=42.0)
    assert rates.wake(60.0) == []
    assert rates.next_at() == 70.0
    ((ticket, problem),) = rates.wake(70.0)
    assert ticket == "next"
    assert isinstance(problem, RateLimited)
    assert "it has waited for 30.0s (max_wait)" in str(problem)
    assert problem.retry_after_s == 50.0  # at 120 s the last ten of the debt are taken, and room
    assert rates.num_waiting == 0


def test_a_full_line_refuses() -> None:
    rates = limiter(replace(RULE, max_waiting=2))
    admit(rates, ALICE, 100, now=0.0)
    for ticket in ("a", "b"):
        assert rates.ask(ticket, ALICE, prompt_tokens=60, now=1.0) is None
    with pytest.raises(RateLimited, match=r"; 2 requests wait for it already") as caught:
        rates.ask("c", ALICE, prompt_tokens=30, now=1.0)
    assert caught.value.retry_after_s == 119.0  # after those two
    assert names(rates.wake(60.0)) == ["a"]
    assert names(rates.wake(120.0)) == ["b"]


def test_a_rule_that_rejects_does_so_before_and_after_waiting() -> None:
    rates = limiter(RULE, replace(REJECT, name="strict", per=Per.ALL, tokens=150, window_s=10.0))
    admit(rates, ALICE, 100, now=0.0)
    with pytest.raises(RateLimited, match="limit strict") as caught:
        rates.ask("a", ALICE, prompt_tokens=60, now=1.0)
    assert caught.value.retry_after_s == 59.0  # the other rule would keep it that long
    assert rates.ask("b", ALICE, prompt_tokens=60, now=10.0) is None
    admit(rates, BOB, 100, now=55.0)
    ((ticket, problem),) = rates.wake(60.0)
    assert ticket == "b"
    assert isinstance(problem, RateLimited)
    assert problem.retry_after_s == 5.0


def test_who_is_not_meant_is_not_counted() -> None:
    rates = limiter(replace(REJECT, match=Match(group=("students",))))
    grant = admit(rates, ALICE, 10**9, now=0.0)
    rates.charge(grant, 10**9, now=0.0)
    rates.refund(grant, now=0.0)
    assert rates.standing(ALICE, now=0.0) == []
    student = ALICE._replace(groups=("students",))
    assert [standing.used for standing in rates.standing(student, now=0.0)] == [0]


# ---- other rules ----


def test_a_higher_limit_lets_in_who_waits_and_what_was_used_counts() -> None:
    rates = limiter(RULE)
    admit(rates, ALICE, 90, now=0)
    assert rates.ask("waits", ALICE, prompt_tokens=30, now=1) is None
    rates.replace_rules([replace(RULE, tokens=200)], now=2)
    assert names(rates.wake(2)) == ["waits"]
    (standing,) = rates.standing(ALICE, now=2)
    assert (standing.used, standing.limit) == (120, 200)


def test_whoever_waits_is_served_under_a_lower_limit_and_without_its_rule() -> None:
    rates = limiter(RULE, ALL)
    admit(rates, ALICE, 50, now=0)
    for ticket in ("first", "second"):
        assert rates.ask(ticket, ALICE, prompt_tokens=90, now=1) is None
    rates.replace_rules([replace(RULE, tokens=40)], now=2)
    assert rates.wake(2) == []
    served, now = [], 2.0
    while (at := rates.next_at()) is not None:
        now = max(now, at)
        served += names(rates.wake(now))
    assert served == ["first", "second"]
    assert admit(rates, BOB, 40, now=now)
    with pytest.raises(LimitExceeded):
        rates.ask("new", BOB, prompt_tokens=41, now=now)


def test_a_new_rule_counts_from_its_first_request_on() -> None:
    rates = limiter()
    admit(rates, ALICE, 1000, now=0)
    rates.replace_rules([REJECT], now=1)
    admit(rates, ALICE, 100, now=2)
    with pytest.raises(RateLimited):
        rates.ask("new", ALICE, prompt_tokens=1, now=3)


def test_what_is_foreseen_is_the_exact_time_and_takes_nothing() -> None:
    rates = limiter(RULE, replace(RULE, name="calls", tokens=None, requests=5))
    admit(rates, ALICE, 70, now=0.0)
    tokens, requests = rates.foresee(ALICE, prompt_tokens=40, now=1.0)
    assert (tokens.used, tokens.limit, tokens.retry_after_s) == (70, 100, 59.0)
    assert (requests.used, requests.limit, requests.retry_after_s) == (1, 5, 0.0)
    assert rates.foresee(ALICE, prompt_tokens=30, now=1.0)[0].retry_after_s == 0.0
    admit(rates, ALICE, 30, now=1.0)
    with pytest.raises(LimitExceeded, match="can never be admitted"):
        rates.foresee(ALICE, prompt_tokens=101, now=1.0)
