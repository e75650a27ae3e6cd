"""Sliding windows, compared with a log that keeps every token for ever."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from openclawd.admission.quotas import Lease, Meter, Window, WindowStore

SECOND = 1_000_000


@dataclass
class TokenLog:
    """Every token ever taken. `stamps` is when each found room: at once, or in debt when the one
    `limit` tokens before it had left the window."""

    limit: int
    window: int
    stamps: list[int] = field(default_factory=list)
    taken: list[tuple[int, int]] = field(default_factory=list)

    def stamps_of(self, amount: int, now: int) -> list[int]:
        stamps = list(self.stamps)
        for _ in range(amount):
            last = stamps[-1] if stamps else now
            leaves = stamps[-self.limit] + self.window if len(stamps) >= self.limit else now
            stamps.append(max(now, last, leaves))
        return stamps

    def due(self, amount: int, now: int) -> int:
        """When the last of them would find room."""
        return self.stamps_of(amount, now)[-1]

    def used(self, now: int) -> int:
        return sum(stamp > now - self.window for stamp in self.stamps)

    def debt(self, now: int) -> int:
        return sum(stamp > now for stamp in self.stamps)

    def charge(self, amount: int, now: int) -> None:
        self.stamps = self.stamps_of(amount, now)
        self.taken.append((now, amount))

    def give_back(self, amount: int, at: int, now: int) -> None:
        if at + self.window <= now:
            return
        index = self.stamps.index(at)
        assert self.stamps[index : index + amount] == [at] * amount
        del self.stamps[index : index + amount]
        self.taken.append((at, -amount))
        debt = self.debt(now)
        self.stamps = [stamp for stamp in self.stamps if stamp <= now]
        self.stamps = self.stamps_of(debt, now)

    def really_taken(self, now: int) -> int:
        """Of the last window, by when it was taken and not by when it found room."""
        return sum(amount for at, amount in self.taken if now - self.window < at <= now)


class WindowMachine(RuleBasedStateMachine):
    @initialize(limit=st.integers(1, 12), window=st.integers(1, 40))
    def begin(self, limit: int, window: int) -> None:
        self.limit, self.width = limit, window
        self.window = Window(limit, window)
        self.log = TokenLog(limit, window)
        self.now = 1000
        self.grants: list[tuple[int, int]] = []

    @rule(us=st.integers(0, 25) | st.integers(100, 2000))
    def wait(self, us: int) -> None:
        self.now += us

    @rule(amount=st.integers(1, 12))
    def ask(self, amount: int) -> None:
        """A request: admitted exactly when the log has room, and then it fits into the window of
        what was really taken, whatever debts there were."""
        amount = min(amount, self.limit)
        due = self.window.due_us(amount, self.now)
        assert due == self.log.due(amount, self.now)
        if due == self.now:
            self.window.charge(amount, self.now)
            self.log.charge(amount, self.now)
            self.grants.append((self.now, amount))
            assert self.log.debt(self.now) == 0
            assert self.log.really_taken(self.now) <= self.limit

    @rule(amount=st.integers(1, 60))
    def charge(self, amount: int) -> None:
        """Completion tokens of what runs."""
        self.window.charge(amount, self.now)
        self.log.charge(amount, self.now)

    @rule(amounts=st.lists(st.integers(1, 12), min_size=1, max_size=4))
    def stand_in_line(self, amounts: list[int]) -> None:
        """When the last of several could go on, if each is let in as a whole."""
        amounts = [min(amount, self.limit) for amount in amounts]
        log = TokenLog(self.limit, self.width, list(self.log.stamps))
        due = self.now
        for amount in amounts:
            due = log.due(amount, due)
            log.charge(amount, due)
        assert self.window.last_due_us(amounts, self.now) == due

    @precondition(lambda self: self.grants)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.grants) - 1))
        at, amount = self.grants.pop(index)
        self.window.give_back(amount, taken_at_us=at, now_us=self.now)
        self.log.give_back(amount, at, self.now)

    @invariant()
    def agrees(self) -> None:
        assert self.window.used(self.now) == self.log.used(self.now)
        assert self.log.really_taken(self.now) <= self.limit + self.log.debt(self.now)
        self.window.check()


TestWindow = WindowMachine.TestCase


@given(
    limit=st.integers(1, 20),
    charges=st.lists(st.tuples(st.integers(0, 50), st.integers(1, 200)), min_size=1, max_size=8),
    need=st.integers(1, 20),
)
def test_what_is_due_then_is_due_then_and_not_a_moment_earlier(
    limit: int, charges: list[tuple[int, int]], need: int
) -> None:
    window, now = Window(limit, 30), 0
    for wait, amount in charges:
        now += wait
        window.charge(amount, now)
    need = min(need, limit)
    due = window.due_us(need, now)
    if due > now:
        assert window.due_us(need, due - 1) == due
    assert window.due_us(need, due) == due


@given(seed=st.integers(0, 2**32), max_entries=st.sampled_from([8, 16, 64]))
def test_with_many_entries_it_is_late_by_a_cell_at_most_and_never_early(
    seed: int, max_entries: int
) -> None:
    chance = random.Random(seed)
    limit, width = 500, 10_000
    window, log = Window(limit, width, max_entries=max_entries), TokenLog(limit, width)
    now = 0
    for _ in range(100):
        now += chance.randrange(200)
        amount = chance.randrange(1, 12)
        due = window.due_us(amount, now)
        exact = log.due(amount, now)
        assert exact <= due <= exact + 2 * width // max_entries
        now = due
        window.charge(amount, now)
        log.charge(amount, now)
        window.check()


def test_a_large_debt_is_paid_by_the_windows_that_follow() -> None:
    window = Window(100, SECOND)
    window.charge(100, 0)
    window.charge(10**12, SECOND // 2)
    assert window.used(SECOND // 2) == 10**12 + 100
    assert window.due_us(100, SECOND // 2) == (10**10 + 1) * SECOND
    much_later = (10**10 + 1) * SECOND - 1
    assert window.used(much_later) == 100
    assert window.due_us(100, much_later) == (10**10 + 1) * SECOND
    window.check()


@pytest.mark.parametrize("window_s", [1, 60, 3600, 86_400])
@pytest.mark.parametrize("seed", range(3))
def test_over_ten_windows_the_rate_is_what_was_configured(window_s: int, seed: int) -> None:
    """Requests of all sizes without a break, some of which go over the limit afterwards; more of
    them than the log has entries."""
    chance = random.Random(seed)
    limit, width = 100_000, window_s * SECOND
    window, now, taken = Window(limit, width), 0, 0
    while now < 10 * width:
        amount = chance.choice([20, 50, 300, 1500])
        now = window.due_us(amount, now)
        if now >= 10 * width:
            break
        window.charge(amount, now)
        taken += amount
        now += chance.randrange(width // 2000)
        completion = chance.choice([0, 0, 10, 400])
        window.charge(completion, now)
        taken += completion
        window.check()
    assert abs(taken - 10 * limit) < 0.02 * 10 * limit


# ---- the store ----


def meter(bucket: str = "a", *, limit: int = 10, window_us: int = SECOND) -> Meter:
    return Meter("rule", bucket, "tokens", limit, window_us)


def take(store: WindowStore, amount: int, now: float, *meters: Meter) -> Lease | None:
    return store.lease([(each, amount) for each in meters], now=now)


def test_a_lease_takes_everything_or_nothing() -> None:
    store = WindowStore()
    a, b = meter("a"), meter("b", limit=5)
    assert take(store, 4, 0.0, a, b)
    assert take(store, 4, 0.5, a, b) is None
    assert (store.used(a, now=0.5), store.used(b, now=0.5)) == (4, 4)
    assert store.due(b, [4], now=0.5) == 1.0
    assert store.due(a, [4], now=0.5) == 0.5
    assert take(store, 4, 1.0, a, b)


def test_what_is_given_back_is_that_of_one_count() -> None:
    store = WindowStore()
    a, b = meter("a"), meter("b")
    lease = take(store, 4, 0.0, a, b)
    assert lease
    store.give_back(lease, a, now=0.5)
    assert (store.used(a, now=0.5), store.used(b, now=0.5)) == (0, 4)


def test_those_that_are_not_used_any_more_are_dropped() -> None:
    store = WindowStore()
    for number in range(1000):
        assert take(store, 1, number / 10, meter(str(number)))
    assert len(store) <= 30
    assert store.used(meter("999"), now=100.0) == 1


def test_questions_make_nothing() -> None:
    store = WindowStore()
    assert store.used(meter(), now=0.0) == 0
    assert store.due(meter(), [10], now=0.0) == 0.0
    assert len(store) == 0


def test_clients_that_are_someone_new_each_time_share_one_count_in_the_end() -> None:
    store = WindowStore(max_windows=4)
    granted = [take(store, 10, 0.0, meter(str(number))) for number in range(20)]
    assert [lease is not None for lease in granted] == [True] * 5 + [False] * 15
    assert len(store) == 5
    assert take(store, 1, 0.0, meter("0")) is None  # known ones have their own
    assert take(store, 10, 1.5, meter("new"))


def test_a_window_in_use_is_small() -> None:
    window = Window(10**9, SECOND)
    for now in range(0, 3 * SECOND, 100):
        window.charge(1, now)
    window.check()  # that it has no more than MAX_ENTRIES
    assert window.used(3 * SECOND) == pytest.approx(10_000, rel=0.005)


# ---- another limit ----


@given(
    limits=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    charges=st.lists(st.tuples(st.integers(0, 15), st.integers(1, 8)), max_size=12),
    later=st.integers(0, 60),
)
def test_another_limit_forgets_nothing_and_lets_no_more_through_than_it_says(
    limits: tuple[int, int], charges: list[tuple[int, int]], later: int
) -> None:
    old, new = limits
    window, now = Window(old, 40), 1000
    for us, amount in charges:
        now += us
        window.charge(amount, now)
    used = window.used(now)
    window.change_limit(new, now)
    window.check()
    assert (window.used(now), window.limit) == (used, new)
    now = window.due_us(new, now + later)
    assert window.used(now) == 0, "all of the new limit is free once all that counted is forgotten"


def test_a_count_goes_on_under_another_limit_and_one_that_needs_more_takes_it_whole() -> None:
    def tokens(limit: int) -> Meter:
        return Meter("r", "alice", "tokens", limit, 60 * SECOND)

    store = WindowStore()
    assert store.lease([(tokens(100), 30)], now=0)
    store.change_limits([tokens(40)], now=1)
    assert store.used(tokens(40), now=1) == 30
    assert store.lease([(tokens(40), 11)], now=1) is None
    assert store.lease([(tokens(40), 10)], now=1)
    assert store.due(tokens(40), [70], now=1) == 61, "when everything is forgotten"
    assert store.lease([(tokens(40), 70)], now=61)
    assert store.used(tokens(40), now=61) == 70
