"""Budgets: nothing is spent twice, nobody waits for ever, every refusal says why."""

import itertools
import random
from collections import Counter as Multiset

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from openclawctl.wire.errors import BudgetExceeded
from openclawd.admission.budget_rules import (
    Amount,
    BudgetRule,
    Charge,
    Counter,
    Measure,
    Need,
    OnShort,
)
from openclawd.admission.budgets import Budgets, Fallback, Refused, Reserved, Wait
from openclawd.admission.subjects import Match, Per, Subject
from openclawd.admission.windows import Calendar, Lifetime, Rolling, Unit, zone_named

NOW = 1_790_000_000  # 2026-09-21T14:13:20Z, a Monday
HOUR_S = 3600
BERLIN = zone_named("Europe/Berlin")
MONTH = Calendar(Unit.MONTH, BERLIN)


def budget(name="b", **changes):
    values = {
        "match": Match(),
        "per": Per.ALL,
        "tokens": 1000,
        "money": None,
        "window": MONTH,
        "zone": BERLIN,
        "on_short": OnShort.SHRINK,
        "fallback": None,
        "alerts": (800, 950, 1000),
        "max_wait_s": 30.0,
    }
    return BudgetRule(name=name, **{**values, **changes})


def need(prompt, completion, *, least=1, n=1):
    return Need.linear(Amount(prompt), Amount(n), max_completion=completion, least_completion=least)


def alice(**changes):
    return Subject("user:alice", **{"model": "small", **changes})


@pytest.fixture
def ask():
    """Ask budgets for a prompt and an answer; returns the outcome."""

    def ask(budgets, prompt, completion, *, subject=None, now=NOW, **changes):
        return budgets.ask(subject or alice(), need(prompt, completion), now=now, **changes)[1]

    return ask


# ---- room ----


def test_the_worst_case_is_held_and_what_was_not_used_comes_back(ask):
    budgets = Budgets([budget()])
    first = ask(budgets, 100, 500)
    assert (first.amount, first.max_completion, first.shrunk_by) == (Amount(600), 500, "")
    budgets.settle(first, Amount(150), now=NOW)
    assert budgets.rows(None, NOW)[0]["tokens"] == {
        "limit": 1000,
        "used": 150,
        "reserved": 0,
        "left": 850,
        "forecast": 150 * 30 * 24 * HOUR_S // (NOW - MONTH.slot(NOW)),
        "used_up_at": None,
    }


def test_a_request_without_a_budget_needs_none(ask):
    budgets = Budgets([budget(match=Match(model=("large",)))])
    reserved = ask(budgets, 10_000, 10_000)
    assert reserved.charges == []
    assert budgets.settle(reserved, Amount(20_000), now=NOW) == []


def test_what_settled_usage_leaves_is_the_new_maximum(ask):
    budgets = Budgets([budget()])
    budgets.settle(ask(budgets, 100, 500), Amount(600), now=NOW)
    second = ask(budgets, 100, 500)
    assert (second.max_completion, second.shrunk_by) == (300, "b")


def test_with_several_answers_each_shrinks():
    budgets = Budgets([budget()])
    (_, reserved) = budgets.ask(alice(), need(100, 500, n=4), now=NOW)
    assert (reserved.max_completion, reserved.amount) == (225, Amount(1000))


def test_one_that_may_not_be_shrunk_is_refused_with_the_numbers(ask):
    budgets = Budgets([budget(on_short=OnShort.REJECT)])
    budgets.settle(ask(budgets, 100, 500), Amount(600), now=NOW)
    refused = ask(budgets, 100, 500)
    assert str(refused.problem).startswith(
        "budget b: this request may need 600 tokens, and 400 of 1000 are left; reset at "
        "2026-10-01T00:00:00+02:00"
    )
    assert refused.problem.retry_after_s == MONTH.ends_at(MONTH.slot(NOW)) - NOW


def test_used_up_is_refused_until_the_reset(ask):
    budgets = Budgets([budget(per=Per.PRINCIPAL)])
    budgets.settle(ask(budgets, 100, 900), Amount(1000), now=NOW)
    refused = ask(budgets, 5, 10)
    assert isinstance(refused.problem, BudgetExceeded)
    assert refused.problem.message == (
        "budget b of user:alice: 1000 of 1000 tokens are used, and this request needs 6 at least; "
        "reset at 2026-10-01T00:00:00+02:00"
    )
    reset = NOW + int(refused.problem.retry_after_s)
    assert isinstance(ask(budgets, 5, 10, now=reset - 1), Refused)
    assert isinstance(ask(budgets, 5, 10, now=reset), Reserved)


def test_what_never_fits_is_not_promised_a_reset(ask):
    problem = ask(Budgets([budget()]), 2000, 10).problem
    assert problem.message.endswith("this request needs 2001 at least; that will not be reset")
    assert problem.retry_after_s is None
    used_up = Budgets([budget(window=Lifetime())])
    used_up.settle(ask(used_up, 100, 900), Amount(1000), now=NOW)
    assert "will not be reset" in ask(used_up, 5, 5).problem.message


def test_a_least_that_does_not_fit_counts_as_used_up():
    budgets = Budgets([budget()])
    assert isinstance(budgets.ask(alice(), need(100, 950, least=901), now=NOW)[1], Refused)
    assert isinstance(budgets.ask(alice(), need(100, 950, least=900), now=NOW)[1], Reserved)


def test_a_prompt_without_an_answer(ask):
    budgets = Budgets([budget()])
    assert ask(budgets, 1000, 0).amount == Amount(1000)
    assert isinstance(ask(Budgets([budget()]), 1001, 0), Refused)


def test_money_is_counted_beside_tokens():
    budgets = Budgets([budget(money=1_500_000)])
    dear = Need(lambda m: Amount(10 + m, 100_000 + 4_000 * m), 500, 1)
    reserved = budgets.ask(alice(), dear, now=NOW)[1]
    assert (reserved.max_completion, reserved.amount.money) == (350, 1_500_000)
    budgets.settle(reserved, reserved.amount, now=NOW)
    problem = budgets.ask(alice(), dear, now=NOW)[1].problem
    assert "1.50 of 1.50 of money are used, and this request needs 0.104 at least" in str(problem)


def test_what_costs_nothing_fits_a_budget_of_money_that_is_used_up(ask):
    budgets = Budgets([budget(tokens=None, money=5)])
    reserved = budgets.ask(alice(), Need(lambda m: Amount(m, 5), 9, 1), now=NOW)[1]
    budgets.settle(reserved, Amount(9, 5), now=NOW)
    assert isinstance(ask(budgets, 100, 100), Reserved)


def test_all_budgets_must_agree_and_the_strictest_shrinks(ask):
    budgets = Budgets([budget("wide", tokens=900), budget("narrow", tokens=300)])
    reserved = ask(budgets, 100, 500)
    assert (reserved.max_completion, reserved.shrunk_by) == (200, "narrow")
    assert [charge.budget for charge in reserved.charges] == ["wide", "narrow"]
    assert [row["tokens"]["reserved"] for row in budgets.rows(None, NOW)] == [300, 300]


def test_one_that_is_refused_holds_nothing_anywhere(ask):
    budgets = Budgets([budget("wide"), budget("narrow", tokens=50)])
    assert isinstance(ask(budgets, 100, 500), Refused)
    assert [row["tokens"]["reserved"] for row in budgets.rows(None, NOW)] == [0, 0]


def test_what_one_budget_shrinks_may_fit_another_that_would_refuse(ask):
    rules = [budget("strict", on_short=OnShort.REJECT, tokens=500), budget("soft", tokens=400)]
    assert ask(Budgets(rules), 100, 500).max_completion == 300


def test_a_fallback_is_offered_once_and_never_to_the_same_model(ask):
    budgets = Budgets([budget(fallback="tiny", match=Match(model=("small", "tiny")))])
    budgets.settle(ask(budgets, 100, 900), Amount(1000), now=NOW)
    offered = ask(budgets, 5, 5)
    assert isinstance(offered, Fallback)
    assert offered.model == "tiny"
    assert isinstance(ask(budgets, 5, 5, is_fallback=True), Refused)
    assert isinstance(ask(budgets, 5, 5, subject=alice(model="tiny")), Refused)


def test_a_budget_that_refuses_goes_before_one_that_falls_back(ask):
    budgets = Budgets([budget("a", fallback="tiny"), budget("b")])
    budgets.settle(ask(budgets, 100, 900), Amount(1000), now=NOW)
    assert ask(budgets, 5, 5).problem.message.startswith("budget b:")


# ---- waiting ----


def test_what_only_open_requests_hold_is_waited_for(ask):
    budgets = Budgets([budget()])
    first = ask(budgets, 100, 700)
    claim, outcome = budgets.ask(alice(), need(100, 300), now=NOW)
    assert outcome == Wait(1)
    assert claim.max_wait_s == 30.0
    assert budgets.advance(NOW) == []
    budgets.settle(first, Amount(400), now=NOW)
    ((who, reserved),) = budgets.advance(NOW)
    assert who is claim
    assert reserved.amount == Amount(400)
    assert budgets.num_waiting == 0


def test_a_large_one_is_not_starved_by_small_ones(ask):
    budgets = Budgets([budget()])
    running = [ask(budgets, 50, 50) for _ in range(10)]
    large, _ = budgets.ask(alice(), need(400, 500), now=NOW)
    budgets.settle(running.pop(), Amount(0), now=NOW)
    small, outcome = budgets.ask(alice(), need(5, 5), now=NOW)
    assert outcome == Wait(2)
    while len(running) > 1:
        assert budgets.advance(NOW) == []
        budgets.settle(running.pop(), Amount(0), now=NOW)
    assert [claim for claim, _ in budgets.advance(NOW)] == [large]
    budgets.settle(running.pop(), Amount(0), now=NOW)
    assert [claim for claim, _ in budgets.advance(NOW)] == [small]


def test_who_waits_for_a_budget_of_its_own_holds_up_nobody_else(ask):
    rules = [budget("own", per=Per.PRINCIPAL, tokens=100), budget("everybody's")]
    budgets = Budgets(rules)
    ask(budgets, 50, 50)
    assert isinstance(ask(budgets, 50, 50), Wait)
    assert isinstance(ask(budgets, 50, 50, subject=Subject("user:bob")), Reserved)


def test_usage_that_grows_meanwhile_shrinks_or_refuses_who_waits(ask):
    budgets = Budgets([budget()])
    first = ask(budgets, 100, 800)
    waiting = [budgets.ask(alice(), need(50, 500), now=NOW)[0] for _ in range(2)]
    budgets.settle(first, Amount(900), now=NOW)
    ((claim, reserved),) = budgets.advance(NOW)
    assert (claim, reserved.max_completion) == (waiting[0], 50)
    budgets.settle(reserved, Amount(100), now=NOW)
    ((claim, refused),) = budgets.advance(NOW)
    assert claim is waiting[1]
    assert "1000 of 1000 tokens are used" in refused.problem.message


def test_one_that_gives_up_makes_way(ask):
    budgets = Budgets([budget()])
    ask(budgets, 100, 500)
    large, _ = budgets.ask(alice(), need(400, 500), now=NOW)
    small, _ = budgets.ask(alice(), need(100, 100), now=NOW)
    budgets.leave(large)
    assert [claim for claim, _ in budgets.advance(NOW)] == [small]


def test_one_that_waited_too_long_hears_what_is_in_the_way(ask):
    budgets = Budgets([budget()])
    ask(budgets, 100, 700)
    claim, _ = budgets.ask(alice(), need(100, 300), now=NOW)
    refused = budgets.give_up(claim, now=NOW)
    assert refused.problem.message == (
        "budget b: 800 tokens are reserved by requests that are running, too much for this "
        "request's 400 beside the 0 of 1000 that are used, and that did not change within 30 s; "
        "reset at 2026-10-01T00:00:00+02:00"
    )
    assert budgets.num_waiting == 0


# ---- time ----


def test_a_request_counts_in_the_window_in_which_it_reserved(ask):
    window = Calendar(Unit.HOUR, BERLIN)
    budgets = Budgets([budget(window=window)])
    end = window.ends_at(window.slot(NOW))
    reserved = ask(budgets, 100, 800, now=end - 1)
    budgets.settle(reserved, Amount(900), now=end)
    assert budgets.rows(None, end)[0]["tokens"]["used"] == 0
    assert budgets.rows(None, end - 1)[0]["tokens"]["used"] == 900


@pytest.mark.parametrize("window", [Calendar(Unit.DAY, BERLIN), Calendar(Unit.HOUR, BERLIN)])
@pytest.mark.parametrize("jump", [-25 * HOUR_S, -HOUR_S, HOUR_S, 25 * HOUR_S])
def test_a_clock_that_jumps_and_returns_gives_no_window_twice(ask, window, jump):
    budgets = Budgets([budget(window=window)])
    budgets.settle(ask(budgets, 100, 900), Amount(1000), now=NOW)
    elsewhere = NOW + jump
    is_same = window.slot(elsewhere) == window.slot(NOW)
    there = ask(budgets, 100, 900, now=elsewhere)
    assert isinstance(there, Refused if is_same else Reserved)  # nobody is locked out
    if not is_same:
        budgets.settle(there, Amount(1000), now=elsewhere)
    assert isinstance(ask(budgets, 5, 5), Refused)
    assert isinstance(ask(budgets, 5, 5, now=elsewhere), Refused)


@pytest.mark.parametrize("jump", [-HOUR_S, HOUR_S])
def test_a_rolling_window_across_a_jump(ask, jump):
    window = Rolling(24 * HOUR_S)
    budgets = Budgets([budget(window=window)])
    budgets.settle(ask(budgets, 100, 900), Amount(1000), now=NOW)
    assert isinstance(ask(budgets, 5, 5, now=NOW + jump), Refused)
    latest = NOW + window.length_s + window.slot_s  # of the clock on the wall: not for ever
    assert isinstance(ask(budgets, 5, 5, now=latest), Reserved)


def test_a_rolling_window_gives_back_what_is_old(ask):
    window = Rolling(HOUR_S)
    budgets = Budgets([budget(window=window)])
    for minutes, tokens in ((0, 600), (30, 400)):
        at = NOW + minutes * 60
        budgets.settle(ask(budgets, 10, tokens - 10, now=at), Amount(tokens), now=at)
    problem = ask(budgets, 10, 90, now=NOW + 31 * 60).problem
    back = NOW + 31 * 60 + int(problem.retry_after_s)
    assert back == window.slot(NOW) + window.slot_s + HOUR_S
    assert isinstance(ask(budgets, 10, 90, now=back - 1), Refused)
    assert ask(budgets, 10, 5000, now=back).max_completion == 590


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe"])
def test_two_years_of_hours_use_every_window_once(ask, zone):
    """Every hour somebody takes all that is left; each window is given exactly once."""
    window = Calendar(Unit.DAY, zone_named(zone))
    budgets = Budgets([budget(window=window, alerts=())])
    start = window.slot(1_480_000_000)
    used, windows = 0, set()
    for now in range(start, start + 730 * 24 * HOUR_S, HOUR_S):
        windows.add(window.slot(now))
        if isinstance(reserved := ask(budgets, 1, 5000, now=now), Reserved):
            budgets.settle(reserved, reserved.amount, now=now)
            used += reserved.amount.tokens
    assert used == 1000 * len(windows)


@given(
    unit=st.sampled_from(Unit),
    zone=st.sampled_from(["Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe"]),
    steps=st.lists(
        st.tuples(
            st.sampled_from([-30 * 24, -24, -1, 0, 1, 24]).map(lambda hours: hours * HOUR_S)
            | st.integers(0, HOUR_S),
            st.integers(1, 600),
        )
    ),
)
def test_however_the_clock_jumps_each_window_is_given_once_and_whole(unit, zone, steps):
    window = Calendar(unit, zone_named(zone))
    budgets = Budgets([budget(window=window, on_short=OnShort.REJECT)])
    now, used = NOW, Multiset()
    for jump, tokens in steps:
        now += jump
        outcome = budgets.ask(alice(), need(0, tokens), now=now)[1]
        fits = used[window.slot(now)] + tokens <= 1000
        assert isinstance(outcome, Reserved) == fits
        if fits:
            budgets.settle(outcome, Amount(tokens), now=now)
            used[window.slot(now)] += tokens


# ---- alerts ----


def test_each_share_is_alerted_once_in_a_window(ask):
    budgets = Budgets([budget()])
    shares = []
    for now in [NOW] * 10 + [MONTH.ends_at(MONTH.slot(NOW))] * 10:
        reserved = ask(budgets, 50, 50, now=now)
        shares += [(now, a.share) for a in budgets.settle(reserved, Amount(100), now=now)]
    later = MONTH.ends_at(MONTH.slot(NOW))
    assert shares == [(NOW, 800), (NOW, 1000), (later, 800), (later, 1000)]


def test_what_an_alert_says(ask):
    budgets = Budgets([budget("research", per=Per.APP)])
    reserved = ask(budgets, 50, 900, subject=alice(app="web"))
    (alert,) = budgets.settle(reserved, Amount(950), now=NOW)
    assert str(alert) == (
        "budget research of web has used 95 %: 950 of 1000 tokens; "
        "reset at 2026-10-01T00:00:00+02:00"
    )
    assert alert.measure is Measure.TOKENS
    assert alert.as_dict()["share"] == 0.95


def test_a_refusal_near_the_end_alerts_that_it_is_used_up(ask):
    budgets = Budgets([budget()])
    budgets.settle(ask(budgets, 50, 940), Amount(960), now=NOW)
    assert [alert.share for alert in ask(budgets, 100, 5).alerts] == [1000]
    assert ask(budgets, 100, 5).alerts == []


def test_a_refusal_of_something_large_alerts_nothing(ask):
    assert ask(Budgets([budget()]), 5000, 5).alerts == []


def test_a_rolling_window_alerts_again_after_its_length(ask):
    window = Rolling(24 * HOUR_S)
    budgets = Budgets([budget(window=window)])
    said = []
    for hour in range(100):
        now = NOW + hour * HOUR_S
        if isinstance(reserved := ask(budgets, 10, 30, now=now), Reserved):
            said += [(hour, a.share) for a in budgets.settle(reserved, Amount(40), now=now)]
    assert said == sorted(said)
    assert said[0] == (19, 800)
    hours = [hour for hour, share in said if share == 1000]
    assert len(hours) >= 3
    assert all(later - hour >= 24 for hour, later in itertools.pairwise(hours))


# ---- restarts ----


def counter(tokens, *, slot=None, alerted=0, **changes):
    rule = budget(**changes)
    slot = MONTH.slot(NOW) if slot is None else slot
    return Counter(Charge("b", rule.shape, "", slot, None), Amount(tokens), alerted)


def test_counters_of_the_ledger_are_taken_over(ask):
    budgets = Budgets([budget()])
    budgets.restore([counter(400), counter(999, slot=0)])
    assert ask(budgets, 100, 900).max_completion == 500


def test_counters_of_another_window_or_of_no_budget_are_left_out(ask):
    budgets = Budgets([budget()])
    gone = Counter(Charge("gone", "x", "", 0, None), Amount(5), 0)
    budgets.restore([counter(400, window=Lifetime()), counter(400, per=Per.APP), gone])
    assert ask(budgets, 100, 900).amount == Amount(1000)


def test_alerts_are_not_repeated_after_a_restart_and_missed_ones_are_said():
    said = Budgets([budget()])
    said.restore([counter(900, alerted=800)])
    assert said.due_alerts(NOW) == []
    missed = Budgets([budget()])
    missed.restore([counter(970, alerted=800)])
    assert [alert.share for alert in missed.due_alerts(NOW)] == [950]
    assert missed.due_alerts(NOW) == []


# ---- what is shown ----


def test_everybody_sees_their_own_and_operators_all(ask):
    rules = [
        budget("own", per=Per.PRINCIPAL),
        budget("all"),
        budget("others", match=Match(principal=("user:bob",))),
        budget("chats", per=Per.SESSION),
    ]
    budgets = Budgets(rules)
    ask(budgets, 1, 1, subject=alice(session="s1"))
    ask(budgets, 1, 1, subject=Subject("user:bob", session="s2"))
    shown = [(row["name"], row["bucket"]) for row in budgets.rows(alice(), NOW)]
    assert shown == [("own", "user:alice"), ("all", ""), ("chats", "user:alice s1")]
    assert len(budgets.rows(None, NOW)) == 6


def test_a_budget_nobody_used_yet_is_shown():
    budgets = Budgets([budget("own", per=Per.PRINCIPAL), budget("all")])
    rows = budgets.rows(alice(), NOW)
    assert [(row["bucket"], row["tokens"]["left"]) for row in rows] == [
        ("user:alice", 1000),
        ("", 1000),
    ]


def test_the_forecast_says_when_it_will_be_used_up(ask):
    window = Calendar(Unit.DAY, zone_named("UTC"))
    budgets = Budgets([budget(window=window)])
    start = window.slot(NOW)
    reserved = ask(budgets, 100, 400, now=start)
    budgets.settle(reserved, Amount(500), now=start)
    tokens = budgets.rows(None, start + 6 * HOUR_S)[0]["tokens"]
    assert (tokens["forecast"], tokens["used_up_at"]) == (2000, start + 12 * HOUR_S)


def test_the_share_that_is_left(ask):
    budgets = Budgets([budget("a"), budget("b", tokens=500), budget("c", match=Match(app=("x",)))])
    assert budgets.share_left(alice(), NOW) == 1.0
    budgets.settle(ask(budgets, 50, 50), Amount(100), now=NOW)
    assert budgets.share_left(alice(), NOW) == 0.8


def test_a_new_session_each_time_does_not_fill_the_memory(ask):
    window = Calendar(Unit.HOUR, BERLIN)
    budgets = Budgets([budget(per=Per.SESSION, window=window)])
    for number in range(5000):
        now = NOW + number * HOUR_S
        reserved = ask(budgets, 5, 5, subject=alice(session=str(number)), now=now)
        budgets.settle(reserved, Amount(5), now=now)
    assert len(budgets._accounts) < 2200


# ---- the race ----


@pytest.mark.parametrize("on_short", OnShort)
def test_200_at_once_use_nine_tenths_of_a_shared_budget_and_no_token_more(on_short):
    """Answers end by themselves at mixed lengths, long before their maximum."""
    source = random.Random(4)
    limit = 20_000
    budgets = Budgets(
        [budget(tokens=limit, on_short=on_short), budget("own", per=Per.PRINCIPAL, tokens=limit)]
    )
    callers = [Subject(f"user:{number % 20}") for number in range(200)]
    running, used, num_refused = {}, 0, 0

    def take(outcome):
        nonlocal num_refused
        match outcome:
            case Reserved():
                running[outcome] = source.randint(1, outcome.max_completion)
            case Refused(problem):
                num_refused += 1
                assert "reset at" in problem.message

    for caller in callers * 3:
        take(budgets.ask(caller, need(source.randint(5, 60), 200), now=NOW)[1])
    while running:
        reserved = source.choice(list(running))
        used += (spent := reserved.amount.tokens - reserved.max_completion + running.pop(reserved))
        budgets.settle(reserved, Amount(spent), now=NOW)
        for _, decision in budgets.advance(NOW):
            take(decision)
        row = budgets.rows(None, NOW)[0]["tokens"]
        assert row["used"] + row["reserved"] <= limit
        budgets.check(NOW)
    assert num_refused > 0
    assert 0.9 * limit <= used <= limit
    assert budgets.num_waiting == budgets.num_open == 0


class Machine(RuleBasedStateMachine):
    """Any order of requests, ends, giving up and time: the invariants hold."""

    def __init__(self):
        super().__init__()
        self.now = NOW
        self.rules = [
            budget("month", tokens=500, max_wait_s=5),
            budget("hours", window=Rolling(2 * HOUR_S), tokens=300, per=Per.PRINCIPAL),
            budget(
                "hour",
                window=Calendar(Unit.HOUR, BERLIN),
                tokens=None,
                money=900,
                per=Per.APP,
                on_short=OnShort.REJECT,
            ),
            budget("life", window=Lifetime(), tokens=5000, match=Match(model=("small",))),
        ]
        self.budgets = Budgets(self.rules)
        self.open, self.waiting, self.ended = [], [], []

    def take(self, claim, outcome):
        if isinstance(outcome, Reserved):
            assert not any(outcome is each for each in self.ended)
            self.open.append(outcome)
            assert outcome.amount == claim.need.worst(outcome.max_completion)
        elif isinstance(outcome, Wait):
            self.waiting.append(claim)
        else:
            assert isinstance(outcome.problem, BudgetExceeded)

    def advance(self):
        for claim, outcome in self.budgets.advance(self.now):
            self.waiting.remove(claim)
            assert not isinstance(outcome, Wait)
            self.take(claim, outcome)

    @rule(
        who=st.sampled_from(["user:a", "user:b"]),
        app=st.sampled_from(["x", "y"]),
        model=st.sampled_from(["small", "large"]),
        prompt=st.integers(0, 200),
        completion=st.integers(0, 200),
        price=st.integers(0, 3),
    )
    def ask(self, who, app, model, prompt, completion, price):
        subject = Subject(who, app=app, model=model)
        wish = Need.linear(
            Amount(prompt, prompt * price), Amount(1, price), max_completion=completion
        )
        self.take(*self.budgets.ask(subject, wish, now=self.now))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def settle(self, data):
        reserved = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        self.ended.append(reserved)
        share = data.draw(st.integers(0, 4))
        used = Amount(reserved.amount.tokens * share // 4, reserved.amount.money * share // 4)
        self.budgets.settle(reserved, used, now=self.now)
        self.advance()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), is_too_late=st.booleans())
    def leave(self, data, is_too_late):
        claim = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        if is_too_late:
            assert isinstance(self.budgets.give_up(claim, now=self.now), Refused)
        else:
            self.budgets.leave(claim)
        self.advance()

    @rule(seconds=st.integers(0, 3 * HOUR_S))
    def pass_time(self, seconds):
        self.now += seconds
        self.advance()

    @invariant()
    def never_too_much(self):
        self.budgets.check(self.now)
        assert self.budgets.num_open == len(self.open)
        assert self.budgets.num_waiting == len(self.waiting)
        for row in self.budgets.rows(None, self.now):
            for measure in ("tokens", "money"):
                if counts := row.get(measure):
                    assert counts["used"] + counts["reserved"] <= counts["limit"]

    def teardown(self):
        for reserved in self.open:
            self.budgets.settle(reserved, reserved.amount, now=self.now)
            for claim, outcome in self.budgets.advance(self.now):
                self.waiting.remove(claim)
                if isinstance(outcome, Reserved):
                    self.open.append(outcome)
        assert self.budgets.num_open == 0
        assert not self.waiting, "somebody waits although nothing is open"


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# ---- other budgets ----


def used_of(budgets):
    return {row["name"]: row["tokens"]["used"] for row in budgets.rows(None, NOW)}


def test_a_changed_limit_counts_what_was_used_and_lets_in_who_waits(ask):
    budgets = Budgets([budget()])
    budgets.settle(ask(budgets, 100, 500), Amount(400), now=NOW)
    open_one = ask(budgets, 100, 300)
    assert isinstance(ask(budgets, 100, 300), Wait)
    budgets.replace_rules([budget(tokens=2000)], [])
    ((_, decision),) = budgets.advance(NOW)
    assert decision.amount == Amount(400)
    budgets.check(NOW)
    budgets.settle(open_one, Amount(50), now=NOW)
    assert used_of(budgets) == {"b": 450}


def test_a_lower_limit_than_was_used_refuses_and_ends_nothing(ask):
    budgets = Budgets([budget()])
    open_one = ask(budgets, 100, 500)
    budgets.replace_rules([budget(tokens=100)], [])
    assert isinstance(ask(budgets, 1, 1), Refused | Wait)
    budgets.settle(open_one, Amount(600), now=NOW)
    budgets.advance(NOW)
    budgets.check(NOW)
    assert isinstance(ask(budgets, 1, 1), Refused)


def test_a_budget_that_comes_back_has_what_the_ledger_says_and_one_that_goes_holds_nobody(ask):
    budgets = Budgets([budget("old")])
    open_one = ask(budgets, 100, 900)
    assert isinstance(ask(budgets, 100, 900), Wait)
    new = budget("new")
    counter = Counter(Charge("new", new.shape, "", MONTH.slot(NOW), 0), Amount(700), alerted=0)
    budgets.replace_rules([new], [counter])
    assert used_of(budgets) == {"new": 700}
    assert ask(budgets, 100, 900).max_completion == 200
    budgets.settle(open_one, Amount(10), now=NOW)
    ((_, decision),) = budgets.advance(NOW)
    assert isinstance(decision, Reserved)
    budgets.check(NOW)


@pytest.mark.parametrize("other", [[], [budget(per=Per.PRINCIPAL)]])
@pytest.mark.parametrize("is_settled_between", [True, False])
def test_what_is_open_in_a_budget_that_goes_and_comes_back_counts(ask, other, is_settled_between):
    budgets = Budgets([budget()])
    open_one = ask(budgets, 100, 500)
    budgets.replace_rules(other, [])
    if is_settled_between:  # after the counters were read
        budgets.settle(open_one, Amount(600), now=NOW)
    stale = Counter(Charge("b", budget().shape, "", MONTH.slot(NOW), 0), Amount(0), alerted=0)
    budgets.replace_rules([budget()], [stale])
    budgets.check(NOW)
    if not is_settled_between:
        assert isinstance(ask(budgets, 100, 500), Wait)
        budgets.settle(open_one, Amount(600), now=NOW)
        ((_, decision),) = budgets.advance(NOW)
        assert decision.max_completion == 300
    assert used_of(budgets) == {"b": 600}
    budgets.check(NOW)


@pytest.mark.parametrize("outcome", [Reserved, Wait, Refused, Fallback])
def test_what_is_foreseen_is_what_comes_and_changes_nothing(outcome):
    budgets = Budgets([budget(fallback="tiny" if outcome is Fallback else None)])
    _, first = budgets.ask(alice(), need(100, 500), now=NOW)
    if outcome is not Wait:
        used = 600 if outcome is Reserved else 1000
        budgets.settle(first, Amount(used), now=NOW)
        budgets.due_alerts(NOW)
    before = budgets.rows(None, NOW)
    accounts, foreseen = budgets.foresee(alice(), need(100, 500), now=NOW)
    assert isinstance(foreseen, outcome)
    assert (budgets.rows(None, NOW), budgets.num_waiting) == (before, 0)
    budgets.check(NOW)
    _, came = budgets.ask(alice(), need(100, 500), now=NOW)
    if isinstance(came, Reserved):
        assert (foreseen.max_completion, foreseen.shrunk_by) == (300, "b")
        assert (came.max_completion, came.amount) == (foreseen.max_completion, foreseen.amount)
        assert accounts[0].row_after(Amount(50), NOW)["tokens"]["left_after"] == 0
    elif isinstance(came, Wait):
        assert came == foreseen
        left = accounts[0].row_after(Amount(150), NOW)["tokens"]
        assert (left["left"], left["left_after"]) == (400, 250)
    else:
        assert str(came.problem) == str(foreseen.problem)


def test_what_is_foreseen_raises_no_alert(ask):
    budgets = Budgets([budget()])
    budgets.settle(ask(budgets, 100, 870), Amount(970), now=NOW)
    _, refused = budgets.foresee(alice(), need(100, 500), now=NOW)
    assert refused.alerts == []
    assert [alert.share for alert in ask(budgets, 100, 500).alerts] == [1000]


def test_a_bucket_that_nobody_has_used_is_foreseen_and_not_made():
    budgets = Budgets([budget(per=Per.PRINCIPAL)])
    accounts, foreseen = budgets.foresee(alice(), need(100, 500), now=NOW)
    assert isinstance(foreseen, Reserved)
    assert accounts[0].row_after(foreseen.amount, NOW)["tokens"]["left_after"] == 400
    assert budgets.rows(None, NOW) == []
