"""Budgets: the worst case of a request is reserved before anything is computed, in all its budgets
at once, and settled with what was really used.

Pure: `now` is wall time in whole Unix seconds; nobody waits here, but this knows who does. What a
budget and an amount are is `budget_rules`', the counters are `budget_accounts`'.

A request is charged to the window in which it reserved, whenever it ends. It gets one of four
answers:

- `Reserved`, perhaps with a lower maximum (`on_short: shrink`): in all its budgets or in none;
- `Wait`, when it would fit if open reservations ended with nothing used;
- `Fallback` to another model, or `Refused`, when settled usage leaves too little even for the least
  it can do with; and `Refused` for less than its worst case with `on_short: reject`.

Those who wait stand in one line, by arrival. One that a budget is too full for has a claim on that
budget until it is served or gives up, and nobody behind it reserves there before it; so small
requests do not starve a large one, and who waits for one budget holds up nobody in others.

Invariants: with a clock that only goes forward, used + reserved of a bucket never exceeds its
limit, as long as nobody settles more than was reserved; each reservation ends once; whoever waits,
waits for a reservation that is open or for somebody further ahead.
"""

from __future__ import annotations

from collections import Counter as Multiset
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import nsmallest
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import BudgetExceeded
from openclawd.admission.budget_accounts import Account
from openclawd.admission.budget_rules import (
    Alert,
    Amount,
    BudgetRule,
    Charge,
    Counter,
    Measure,
    Need,
    OnShort,
    budget_title,
)
from openclawd.admission.budget_standings import Standing, standings
from openclawd.admission.subjects import MAX_KNOWN, Per
from openclawd.admission.windows import local_time

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from openclawctl.wire.errors import Problem
    from openclawd.admission.subjects import Subject

MAX_ROWS: Final = 1000
"""Buckets of one budget that are shown."""

_SWEEP_EVERY: Final = 1024
"""New buckets between two looks for those that nobody uses any more."""

_KEEP_S: Final = 48 * 3600
"""How long after its end a bucket's last window is kept, in case the clock is set back."""


@dataclass(slots=True, eq=False)
class Claim:
    """One request that wants room in its budgets. `is_fallback`: it has fallen back already, and
    does not once more. `is_dry`: it only wants to know. `short_of` are the accounts it waits
    for."""

    model: str
    need: Need
    accounts: Sequence[Account]
    is_fallback: bool
    is_dry: bool = False
    short_of: set[Account] = field(default_factory=set)

    def fallback(self, account: Account) -> str | None:
        """The model that may serve it when an account is used up."""
        model = account.rule.fallback
        return None if self.is_fallback or model == self.model else model

    @property
    def max_wait_s(self) -> float:
        return min((account.rule.max_wait_s for account in self.short_of), default=0.0)


@dataclass(slots=True, eq=False)  # not frozen: making those takes twice as long, for every request
class Reserved:
    """A reservation: `amount` in every one of `charges`. `shrunk_by` is the budget that lowered the
    maximum of completion tokens, empty if none did."""

    amount: Amount
    max_completion: int
    charges: Sequence[Charge]
    shrunk_by: str
    accounts: Sequence[Account]


@dataclass(frozen=True, slots=True)
class Wait:
    """`position` 1 is next."""

    position: int


@dataclass(frozen=True, slots=True)
class Refused:
    problem: Problem
    alerts: list[Alert]


@dataclass(frozen=True, slots=True)
class Fallback:
    """Another model may serve it; `problem` is why this one does not."""

    model: str
    problem: Problem
    alerts: list[Alert]


Decision = Reserved | Refused | Fallback
Outcome = Decision | Wait


class Budgets:
    """All budgets and who waits for them."""

    def __init__(self, rules: Sequence[BudgetRule]) -> None:
        self._rules = rules
        self._accounts: dict[tuple[str, str], Account] = {}
        self._aside: dict[tuple[str, str, str], Account] = {}
        """Of budgets that are no more, by name, shape and bucket: what was open or waited there at
        the last change of rules. Kept to the next, as its counters may be read before an end."""
        self._fitting = lru_cache(MAX_KNOWN)(self._find_fitting)
        self._sweep_at = _SWEEP_EVERY
        self._line: dict[Claim, None] = {}
        self._claimed: Multiset[Account] = Multiset()
        self._open: set[Reserved] = set()

    def restore(self, counters: Iterable[Counter]) -> None:
        """Take over what the ledger has. Counters of budgets that are no more, or count otherwise
        now, are left out."""
        rules = {(rule.name, rule.shape): rule for rule in self._rules}
        for counter in counters:
            charge = counter.charge
            if rule := rules.get((charge.budget, charge.shape)):
                account = self._account(rule, charge.bucket)
                account.restore(charge.slot, counter.used, alerted=counter.alerted)

    def replace_rules(self, rules: Sequence[BudgetRule], counters: Iterable[Counter]) -> None:
        """Other budgets from now on, `advance` comes next. Those that count as before go on with
        what was used; for the others, `counters` are what the ledger has. What is open or waits in
        a budget that is no more, ends or is decided there, and counts if the budget comes back."""
        known = {(rule.name, rule.shape) for rule in self._rules}
        new = {(rule.name, rule.shape): rule for rule in rules}
        in_use = {account for each in self._open for account in each.accounts}
        in_use.update(account for each in self._line for account in each.accounts)
        before, self._accounts = self._accounts, {}
        returning, self._aside = self._aside, {}
        for account in (*before.values(), *returning.values()):
            key = (account.rule.name, account.rule.shape, account.bucket)
            if rule := new.get(key[:2]):
                account.rule = rule
                self._accounts[rule.name, account.bucket] = account
            elif account in in_use:
                self._aside[key] = account
        self._rules = rules
        self._fitting.cache_clear()
        self.restore(
            each
            for each in counters
            if (each.charge.budget, each.charge.shape) not in known
            and (each.charge.budget, each.charge.shape, each.charge.bucket) not in returning
        )

    # ---- questions ----

    @property
    def num_open(self) -> int:
        return len(self._open)

    @property
    def num_waiting(self) -> int:
        return len(self._line)

    def share_left(self, subject: Subject, now: int) -> float:
        """The smallest share that settled usage leaves of a budget of this request, in [0, 1]."""
        accounts = [self._accounts.get((rule.name, name)) for rule, name in self._fitting(subject)]
        return min((each.share_left(now) for each in accounts if each is not None), default=1.0)

    def rows(self, caller: Subject | None, now: int) -> list[dict[str, Any]]:
        """What `budgets` answers: the buckets of a caller, or all there are (None), of a budget
        with very many those with the least left."""
        rows: list[dict[str, Any]] = []
        for rule in self._rules:
            if caller is None or rule.concerns(caller):
                accounts = self._shown(rule, caller)
                accounts = nsmallest(MAX_ROWS, accounts, key=lambda each: each.share_left(now))
                rows += (each.row(now) for each in sorted(accounts, key=lambda each: each.bucket))
        return rows

    def foresee(
        self, subject: Subject, need: Need, *, now: int, is_fallback: bool = False
    ) -> tuple[list[Account], Outcome]:
        """The accounts of a request, and what would become of it if it asked now."""
        accounts = [
            self._accounts.get((rule.name, bucket)) or Account(rule, bucket)
            for rule, bucket in self._fitting(subject)
        ]
        claim = Claim(subject.model, need, accounts, is_fallback, is_dry=True)
        return accounts, self._decide(claim, self._claimed.keys(), now)

    def standings(self, now: int) -> list[Standing]:
        """How full each budget is, for `/metrics`."""
        return list(standings(self._rules, self._accounts.values(), now))

    def check(self, now: int) -> None:
        """The invariants, for tests."""
        for account in self._accounts.values():
            of_open = [
                each.amount
                for each in self._open
                for charge, holder in zip(each.charges, each.accounts, strict=True)
                if holder is account and charge.slot in account.rule.window.counted(now)
            ]
            assert account.reserved(now) == sum(of_open, Amount())
        for claim in self._line:
            assert claim.short_of, "somebody waits for nothing"
        assert not self._line or self._open, "somebody waits although nothing is open"

    # ---- events ----

    def ask(
        self, subject: Subject, need: Need, *, now: int, is_fallback: bool = False
    ) -> tuple[Claim, Outcome]:
        """Try to reserve. With `Wait` the claim stands in the line; `advance` decides later."""
        self._sweep(now)  # first: what is new has nothing in it yet
        accounts = [self._account(rule, bucket) for rule, bucket in self._fitting(subject)]
        claim = Claim(subject.model, need, accounts, is_fallback)
        outcome = self._decide(claim, self._claimed.keys(), now)
        if isinstance(outcome, Wait):
            self._line[claim] = None
            self._claimed.update(claim.short_of)
        return claim, outcome

    def settle(self, reserved: Reserved, used: Amount, *, now: int) -> list[Alert]:
        """End a reservation with what was used. `advance` comes next."""
        self._open.remove(reserved)
        alerts = []
        for charge, account in zip(reserved.charges, reserved.accounts, strict=True):
            account.settle(charge.slot, reserved=reserved.amount, used=used)
            alerts += account.take_alerts(now)
        return alerts

    def leave(self, claim: Claim) -> None:
        """One who waits gives up. `advance` comes next."""
        del self._line[claim]
        self._claimed.subtract(claim.short_of)
        self._claimed += Multiset()  # drops what nobody claims

    def advance(self, now: int) -> list[tuple[Claim, Decision]]:
        """Decide for those who wait and now can get an answer; they leave the line."""
        decided: list[tuple[Claim, Decision]] = []
        ahead: set[Account] = set()
        for claim in list(self._line):
            if claim.short_of.isdisjoint(ahead):
                before = set(claim.short_of)
                outcome = self._decide(claim, ahead, now)
                self._claimed.update(claim.short_of - before)
                if not isinstance(outcome, Wait):
                    self.leave(claim)
                    decided.append((claim, outcome))
                    continue
            ahead |= claim.short_of
        return decided

    def give_up(self, claim: Claim, *, now: int) -> Refused:
        """One has waited as long as it may. `advance` comes next."""
        self.leave(claim)
        account = next(iter(claim.short_of))
        worst = claim.need.worst(claim.need.max_completion)
        measure, limit = _measure_of(account, worst, now)
        reserved = account.reserved(now).of(measure)
        return Refused(
            self._problem(
                account,
                f"{measure.shown(reserved)} are reserved by requests that are running, too much "
                f"for this request's {measure.number(worst.of(measure))} beside the "
                f"{measure.number(account.used(now).of(measure))} of {measure.number(limit)} that "
                f"are used, and that did not change within {account.rule.max_wait_s:g} s",
                need=worst,
                now=now,
            ),
            alerts=[],
        )

    def due_alerts(self, now: int) -> list[Alert]:
        """What became due without being said, as when the daemon was killed in between."""
        return [alert for each in self._accounts.values() for alert in each.take_alerts(now)]

    # ---- the decision ----

    def _decide(self, claim: Claim, ahead: Collection[Account], now: int) -> Outcome:
        """`ahead` are the accounts that somebody further ahead waits for."""
        need = claim.need
        wanted = need.worst(need.max_completion)
        if all(each not in ahead and each.has_free(wanted, now) for each in claim.accounts):
            return self._reserved(claim, wanted, need.max_completion, now)
        least = need.worst(need.least_completion)
        if used_up := [each for each in claim.accounts if not each.leaves(now)(least)]:
            return self._used_up(claim, used_up, now)
        most, shrunk_by = _shrunk(claim, now)
        worst = need.worst(most)
        if short := [each for each in claim.accounts if not each.leaves(now)(worst)]:
            return Refused(self._too_short(short[0], worst, now), alerts=[])
        lacking = {
            each for each in claim.accounts if each in ahead or not each.has_free(worst, now)
        }
        claim.short_of |= lacking
        if lacking:
            return Wait(sum(not claim.short_of.isdisjoint(o.short_of) for o in self._line) + 1)
        return self._reserved(claim, worst, most, now, shrunk_by=shrunk_by)

    def _reserved(
        self, claim: Claim, amount: Amount, most: int, now: int, *, shrunk_by: str = ""
    ) -> Reserved:
        if claim.is_dry:
            return Reserved(amount, most, (), shrunk_by, claim.accounts)
        charges = [each.reserve(amount, now) for each in claim.accounts]
        reserved = Reserved(amount, most, charges, shrunk_by, claim.accounts)
        self._open.add(reserved)
        return reserved

    def _used_up(self, claim: Claim, accounts: list[Account], now: int) -> Refused | Fallback:
        asked = () if claim.is_dry else accounts
        alerts = [alert for each in asked for alert in each.take_alerts(now, is_refusing=True)]
        least = claim.need.worst(claim.need.least_completion)
        account = next((each for each in accounts if claim.fallback(each) is None), accounts[0])
        measure, limit = account.first_missing(least, now)
        problem = self._problem(
            account,
            f"{measure.number(account.used(now).of(measure))} of {measure.shown(limit)} are used"
            f"{_and_reserved(account, measure, now)}, and this request needs "
            f"{measure.number(least.of(measure))} at least",
            need=least,
            now=now,
        )
        model = claim.fallback(account)
        return Refused(problem, alerts) if model is None else Fallback(model, problem, alerts)

    def _too_short(self, account: Account, worst: Amount, now: int) -> BudgetExceeded:
        measure, limit = account.first_missing(worst, now)
        used = account.used(now).of(measure)
        return self._problem(
            account,
            f"this request may need {measure.shown(worst.of(measure))}, and "
            f"{measure.number(max(0, limit - used))} of {measure.number(limit)} are left"
            f"{_and_reserved(account, measure, now)}",
            need=worst,
            now=now,
            hint="lower max_tokens, shorten the prompt, or wait for the reset",
        )

    def _problem(
        self,
        account: Account,
        what: str,
        *,
        need: Amount,
        now: int,
        hint: str = "wait for the reset, or ask the administrator for more (`openclawctl budgets`)",
    ) -> BudgetExceeded:
        """A sentence with the time of the reset at its end."""
        reset_at = account.reset_at(need, now)
        title = budget_title(account.rule.name, account.bucket)
        if reset_at is None:
            return BudgetExceeded(f"{title}: {what}; that will not be reset", hint=hint)
        return BudgetExceeded(
            f"{title}: {what}; reset at {local_time(reset_at, account.rule.zone)}",
            hint=hint,
            retry_after_s=float(max(0, reset_at - now)),
        )

    # ---- the accounts ----

    def _shown(self, rule: BudgetRule, caller: Subject | None) -> list[Account]:
        accounts = [
            account
            for (name, bucket), account in self._accounts.items()
            if name == rule.name and (caller is None or rule.owns(bucket, caller))
        ]
        known = {account.bucket for account in accounts}
        return accounts + [Account(rule, each) for each in _always_shown(rule, caller) - known]

    def _find_fitting(self, subject: Subject) -> list[tuple[BudgetRule, str]]:
        """The budgets of a subject's requests, and the bucket in each. Use `_fitting`, which
        remembers: names only, as accounts come and go."""
        fitting = (rule for rule in self._rules if rule.match.fits(subject))
        return [(rule, rule.per.bucket(subject)) for rule in fitting]

    def _account(self, rule: BudgetRule, bucket: str) -> Account:
        account = self._accounts.get((rule.name, bucket))
        if account is None:
            account = self._accounts[rule.name, bucket] = Account(rule, bucket)
        return account

    def _sweep(self, now: int) -> None:
        """Forget buckets that nothing counts in, now and then, so that a program that names a new
        session each time does not fill the memory."""
        if len(self._accounts) < self._sweep_at:
            return
        in_use = {account for claim in self._line for account in claim.accounts}
        for key, account in list(self._accounts.items()):
            is_over = account.newest_end() + _KEEP_S <= now
            if account.is_empty(now) and is_over and account not in in_use:
                del self._accounts[key]
        self._sweep_at = len(self._accounts) + _SWEEP_EVERY


def _shrunk(claim: Claim, now: int) -> tuple[int, str]:
    """The maximum that settled usage leaves in the budgets that shrink, and which one says so."""
    most, shrunk_by = claim.need.max_completion, ""
    for account in claim.accounts:
        if account.rule.on_short is OnShort.SHRINK:
            fitting = claim.need.longest_within(account.leaves(now))
            if fitting < most:
                most, shrunk_by = fitting, account.rule.name
    return most, shrunk_by


def _measure_of(account: Account, worst: Amount, now: int) -> tuple[Measure, int]:
    """The measure in which open reservations are in the way; the first if they no longer are."""
    taken = account.used(now) + account.reserved(now)
    limits = list(account.rule.limits)
    lacking = (
        (measure, limit)
        for measure, limit in limits
        if taken.of(measure) + worst.of(measure) > limit
    )
    return next(lacking, limits[0])


def _and_reserved(account: Account, measure: Measure, now: int) -> str:
    reserved = account.reserved(now).of(measure)
    return f" and {measure.number(reserved)} reserved" if reserved else ""


def _always_shown(rule: BudgetRule, caller: Subject | None) -> set[str]:
    """Buckets that are shown before anything was used."""
    if rule.per is Per.ALL:
        return {""}
    if caller is not None and rule.per in (Per.PRINCIPAL, Per.KEY, Per.TIER):
        return {rule.per.bucket(caller)} - {""}
    return set()
