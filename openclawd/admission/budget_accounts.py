"""The counters of one bucket of a budget: what is used and what is reserved, slot by slot.

Pure; `now` is wall time in whole Unix seconds.

Invariants: a slot's reserved amount is the sum of the open reservations that were made in it;
`used` and `reserved` of an account are the sums of the slots that count at the `now` it was last
asked about.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from openclawd.admission.budget_rules import (
    NOTHING,
    WHOLE_SHARE,
    Alert,
    Amount,
    BudgetRule,
    Charge,
    Measure,
)
from openclawd.admission.windows import Calendar, Rolling, Span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MAX_SLOTS: Final = 256
"""Slots an account remembers. A rolling window needs 62, twice that if the clock was set back; of
calendar windows these are the last ten days of hours, if it is set back by so much."""

_AS_GOOD_AS_USED_UP: Final = 950
"""Thousandths. A refusal because the rest is too small for a request counts as used up for the
alerts from here on; below, it says more about the request."""

_SHORTEST_HISTORY: Final = 60
"""A forecast takes usage as that of a sixtieth of the window at least: the first request of a month
says little about the month."""


@dataclass(slots=True)
class _Tally:
    """An amount that is counted up and down: each request does so a dozen times."""

    tokens: int = 0
    money: int = 0

    def add(self, amount: Amount | _Tally) -> None:
        self.tokens += amount.tokens
        self.money += amount.money

    def subtract(self, amount: Amount) -> None:
        self.tokens -= amount.tokens
        self.money -= amount.money

    @property
    def amount(self) -> Amount:
        return Amount(self.tokens, self.money)

    @property
    def is_nothing(self) -> bool:
        return not (self.tokens or self.money)

    def of(self, measure: Measure) -> int:
        return self.tokens if measure is Measure.TOKENS else self.money


@dataclass(slots=True)
class _Slot:
    used: _Tally = field(default_factory=_Tally)
    reserved: _Tally = field(default_factory=_Tally)
    alerted: int = 0


class Account:
    """One bucket of one budget."""

    def __init__(self, rule: BudgetRule, bucket: str) -> None:
        self.rule = rule
        self.bucket = bucket
        self._slots: dict[int, _Slot] = {}
        self._span = Span(0, -1)
        self._until = 0
        self._charge: Charge
        self._used = _Tally()
        self._reserved = _Tally()

    # ---- questions ----

    def used(self, now: int) -> Amount:
        """Settled usage that counts."""
        self._look_at(now)
        return self._used.amount

    def reserved(self, now: int) -> Amount:
        """Of open reservations that count."""
        self._look_at(now)
        return self._reserved.amount

    def leaves(self, now: int) -> Callable[[Amount], bool]:
        """Does an amount fit beside settled usage?"""
        return self._fits_beside(self.used(now))

    def has_free(self, amount: Amount, now: int) -> bool:
        """Does an amount fit beside settled usage and open reservations?"""
        self._look_at(now)
        rule, used, reserved = self.rule, self._used, self._reserved
        return _fits(amount.tokens, used.tokens + reserved.tokens, rule.tokens) and _fits(
            amount.money, used.money + reserved.money, rule.money
        )

    def reset_at(self, amount: Amount, now: int) -> int | None:
        """When usage will have been forgotten that is in the way of `amount`, in Unix seconds. None
        if it never fits."""
        if not self._fits_beside(NOTHING)(amount):
            return None
        used = self.used(now)
        for number in sorted(self._counting()):
            ends_at = self.rule.window.ends_at(number)
            used -= self._slots[number].used.amount
            if ends_at is None or self._fits_beside(used)(amount):
                return ends_at
        return self._charge.ends_at

    def next_reset_at(self, now: int) -> int | None:
        """When something of what is used will be forgotten."""
        oldest = min(self._counting(), default=self.charge(now).slot)
        return self.rule.window.ends_at(oldest)

    def first_missing(self, amount: Amount, now: int) -> tuple[Measure, int]:
        """The measure in which an amount does not fit beside settled usage, and its limit."""
        used = self.used(now)
        missing = (
            (measure, limit)
            for measure, limit in self.rule.limits
            if amount.of(measure) > max(0, limit - used.of(measure))
        )
        return next(missing)

    def share_left(self, now: int) -> float:
        """The smallest share of a limit that settled usage leaves, in [0, 1]."""
        self._look_at(now)
        share = 1.0
        for measure, limit in self.rule.limits:
            share = min(share, max(0, limit - self._used.of(measure)) / max(1, limit))
        return share

    def is_empty(self, now: int) -> bool:
        """Is nothing counted that a later request would miss?"""
        self._look_at(now)
        nothing_reserved = all(slot.reserved.is_nothing for slot in self._slots.values())
        return nothing_reserved and self._used.is_nothing

    def newest_end(self) -> int:
        """When the last slot ends; 0 without any. Not for what never ends."""
        return max((self.rule.window.ends_at(number) or 0 for number in self._slots), default=0)

    def row(self, now: int) -> dict[str, Any]:
        """What `budgets` answers about it."""
        rule, used, reserved = self.rule, self.used(now), self.reserved(now)
        row: dict[str, Any] = {
            "name": rule.name,
            "per": rule.per.value,
            "match": rule.match.given(),
            "bucket": self.bucket,
            "window": rule.window.name.split()[0],
            "time_zone": str(rule.zone),
            "resets_at": self.next_reset_at(now),
        }
        for measure, limit in rule.limits:
            spent, open_ = used.of(measure), reserved.of(measure)
            row[measure.value] = {
                "limit": limit,
                "used": spent,
                "reserved": open_,
                "left": max(0, limit - spent - open_),
                **self._forecast(spent, limit, now),
            }
        return row

    def row_after(self, amount: Amount, now: int) -> dict[str, Any]:
        """`row`, and of each measure how much would be left beside so much more (`left_after`)."""
        row = self.row(now)
        for measure, _ in self.rule.limits:
            counts = row[measure.value]
            counts["left_after"] = max(0, counts["left"] - amount.of(measure))
        return row

    # ---- events ----

    def charge(self, now: int) -> Charge:
        """Where a reservation that is made now counts."""
        self._look_at(now)
        return self._charge

    def reserve(self, amount: Amount, now: int) -> Charge:
        self._look_at(now)
        charge = self._charge
        self._slot(charge.slot).reserved.add(amount)
        self._reserved.add(amount)
        return charge

    def settle(self, slot: int, *, reserved: Amount, used: Amount) -> None:
        """End a reservation of `reserved` in a slot with what was really used."""
        entry = self._slots[slot]
        entry.reserved.subtract(reserved)
        entry.used.add(used)
        if slot in self._span:
            self._reserved.subtract(reserved)
            self._used.add(used)

    def restore(self, slot: int, used: Amount, *, alerted: int) -> None:
        """Take over a counter from the ledger."""
        self._slots[slot] = _Slot(_Tally(used.tokens, used.money), alerted=alerted)
        self._until = 0

    def take_alerts(self, now: int, *, is_refusing: bool = False) -> list[Alert]:
        """The shares that are reached and were not alerted in this window yet; now they are.

        Of several at once only the highest is worth saying. A rolling window forgets that it has
        alerted when the slot in which it did counts no longer.
        """
        if not is_refusing and not self._may_be_due(now):
            return []
        used = self.used(now)
        alerted = max((self._slots[number].alerted for number in self._counting()), default=0)
        reached = max(
            (
                (used.of(measure) * WHOLE_SHARE // max(1, limit), measure, limit)
                for measure, limit in self.rule.limits
            ),
            key=lambda each: each[0],
            default=None,
        )
        if reached is None:
            return []
        share, measure, limit = reached
        if is_refusing and share >= _AS_GOOD_AS_USED_UP:
            share = max(share, WHOLE_SHARE)
        highest = max((each for each in self.rule.alerts if each <= share), default=0)
        if highest <= alerted:
            return []
        charge = self.charge(now)
        self._slot(charge.slot).alerted = highest
        reset_at = self.next_reset_at(now)
        return [Alert(charge, measure, highest, used.of(measure), limit, reset_at, self.rule.zone)]

    # ---- inside ----

    def _may_be_due(self, now: int) -> bool:
        """Is the least share of the alerts reached? Nearly never, and asked after each request."""
        self._look_at(now)
        if not self.rule.alerts:
            return False
        rule, used, least = self.rule, self._used, self.rule.alerts[0]
        return _is_reached(used.tokens, least, rule.tokens) or _is_reached(
            used.money, least, rule.money
        )

    def _fits_beside(self, taken: Amount) -> Callable[[Amount], bool]:
        rule = self.rule
        return lambda amount: (
            _fits(amount.tokens, taken.tokens, rule.tokens)
            and _fits(amount.money, taken.money, rule.money)
        )

    def _look_at(self, now: int) -> None:
        """Count the slots of the window at `now`, unless they are those that were counted last."""
        if self._until and self._charge.slot <= now < self._until:
            return
        rule, window = self.rule, self.rule.window
        slot = window.slot(now)
        self._charge = Charge(rule.name, rule.shape, self.bucket, slot, window.ends_at(slot))
        self._span, self._until = window.counted(now), window.next_slot(slot)
        self._used, self._reserved = _Tally(), _Tally()
        for number in self._counting():
            self._used.add(self._slots[number].used)
            self._reserved.add(self._slots[number].reserved)

    def _counting(self) -> Iterator[int]:
        """The slots that count at the moment that was looked at last."""
        return (number for number in self._slots if number in self._span)

    def _slot(self, number: int) -> _Slot:
        entry = self._slots.get(number)
        if entry is None:
            if len(self._slots) >= _MAX_SLOTS:
                self._forget_one()
            entry = self._slots[number] = _Slot()
        return entry

    def _forget_one(self) -> None:
        """The one that was there first and matters to nobody, if there is one."""
        for number, entry in self._slots.items():
            if number not in self._span and entry.reserved.is_nothing:
                del self._slots[number]
                return

    def _forecast(self, used: int, limit: int, now: int) -> dict[str, int | None]:
        """If it goes on as in this window so far: what will be used at its end, and when it will be
        used up (None: not in this window)."""
        window = self.rule.window
        match window:
            case Calendar():
                start = window.slot(now)
                length_s = window.ends_at(start) - start
            case Rolling():
                start = max(min(self._counting(), default=now), now - window.length_s)
                length_s = window.length_s
            case _:
                return {"forecast": None, "used_up_at": None}
        elapsed_s = max(length_s // _SHORTEST_HISTORY, min(now - start, length_s))
        forecast = used * length_s // elapsed_s
        used_up_at = None
        if used and forecast > limit:
            used_up_at = now + max(0, limit - used) * elapsed_s // used
        return {"forecast": forecast, "used_up_at": used_up_at}


def _is_reached(used: int, share: int, limit: int | None) -> bool:
    return limit is not None and used * WHOLE_SHARE >= share * limit


def _fits(wanted: int, taken: int, limit: int | None) -> bool:
    """What costs nothing fits, however far over its limit a budget is."""
    return not wanted or limit is None or taken + wanted <= limit
