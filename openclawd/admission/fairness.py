"""Who is next of those who wait at one priority: fair by tokens served, not by arrival.

Owns what each tier and each principal has been served, and the order that follows. Pure; knows no
places that are free and no priorities.

The Virtual Token Counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024),
on two floors: the tier goes first whose counter, divided by its weight, is the least (weighted fair
queueing; hierarchical as in Bennett and Zhang, "Hierarchical packet fair queueing algorithms",
SIGCOMM 1996), and in it the principal whose counter is the least. Prompt tokens are charged when a
request starts, completion tokens as they come. Of equals, one that holds no place goes first, then
who came first. Requests of one principal keep the order in which they came.

Who comes back when none of its requests waited has its counter lifted to the least of those who
wait (or, if nobody does, to that of the one who did last): having been idle earns nothing. What was
charged for prompts of which no token has come is left out of that, since some of it may be given
back. So of two who wait all the time, neither is served more than twice the tokens that can be in
the places at once beyond the other (the paper's bound), and between two turns of a tier of weight w
the others get no more than their weights ÷ w of what it got, and what is in the places.

No event costs more than the logarithm of how many wait: each tier has its principals in heaps, one
for each number of places that a first request needs. A counter that has grown leaves its entry in
the heap where it was, too far ahead, until it comes to the top and is put right.
"""

from __future__ import annotations

import enum
import heapq
import itertools
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openclawd.admission.tiers import Priority, Tier

Ticket = TypeVar("Ticket")

Key = tuple[int, bool, int]
"""What decides between principals: tokens served, does it hold a place, the number of its first
request. Less goes first."""

_UNIT: Final = 1 << 20
"""A tier's counter is in such parts of a token for each unit of weight: rounding costs a tier less
than a token in a million charges."""

_SWEEP_FROM: Final = 256
"""Principals of one tier from which on those who are idle and owed nothing are forgotten."""


class State(enum.Enum):
    """Those who are aside have run, and wait to go on."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    ASIDE = enum.auto()


@dataclass(slots=True, eq=False)
class Entry(Generic[Ticket]):
    """One request. `number` is the order of arrival and `start_number` that of starts; `level` is
    the priority it has by now. `tokens` are known to be needed; `charged` were served. `first_at`
    is the start that first passed it, `safe_until` how much must be charged before it may be set
    aside again. `unconfirmed` was charged for its prompt, and nothing has come of it yet."""

    ticket: Ticket
    number: int
    weight: int
    priority: Priority
    level: Priority
    account: Account[Ticket]
    tokens: int
    state: State = State.WAITING
    charged: int = 0
    unconfirmed: int = 0
    num_skips: int = 0
    first_at: int | None = None
    started_at: float | None = None
    start_number: int = 0
    is_boosted: bool = False
    safe_until: int = 0


@dataclass(slots=True, eq=False)
class Account(Generic[Ticket]):
    """One principal in one tier. `counter` is tokens, `unconfirmed` among them; `places` those it
    holds; `num_open` its requests, waiting or not. `lines` has those that wait by the places they
    need, each in order of arrival; `listed` is where the tier's heaps have it."""

    tier: TierLine[Ticket]
    principal: str
    counter: int = 0
    unconfirmed: int = 0
    places: int = 0
    num_open: int = 0
    num_waiting: int = 0
    lines: dict[int, OrderedDict[int, Entry[Ticket]]] = field(default_factory=dict)
    listed: dict[int, Key] = field(default_factory=dict)

    @property
    def confirmed(self) -> int:
        return self.counter - self.unconfirmed

    def first(self, weight: int) -> Entry[Ticket] | None:
        line = self.lines.get(weight)
        return next(iter(line.values())) if line else None

    def key(self, number: int) -> Key:
        return self.counter, self.places > 0, number

    def in_order(self) -> Iterator[Entry[Ticket]]:
        """Those that wait."""
        return heapq.merge(*(line.values() for line in self.lines.values()), key=_number)


class TierLine(Generic[Ticket]):
    """The principals of one tier."""

    def __init__(self) -> None:
        self.weight = 1
        self.virtual = 0  # tokens served ÷ weight, in _UNITs
        self.unconfirmed = 0
        self.places = 0
        self.num_active = 0  # principals with an open request
        self.num_waiting = 0  # requests
        self.heaps: dict[int, list[tuple[Key, Account[Ticket]]]] = {}
        self._accounts: dict[str, Account[Ticket]] = {}
        self._last: Account[Ticket] | None = None  # whose waiting ended last
        self._sweep_at = _SWEEP_FROM

    @property
    def num_principals(self) -> int:
        return len(self._accounts)

    @property
    def confirmed(self) -> int:
        """`virtual`, of what is certain."""
        return self.virtual - self.unconfirmed * _UNIT // self.weight

    def account(self, principal: str) -> Account[Ticket]:
        if (account := self._accounts.get(principal)) is None:
            self._sweep()
            account = self._accounts[principal] = Account(self, principal)
        return account

    def first(self, max_weight: int | None) -> Entry[Ticket] | None:
        """The next that needs at most so many places."""
        best: tuple[Key, Entry[Ticket]] | None = None
        for weight in self.heaps:
            if max_weight is not None and weight > max_weight:
                continue
            found = self._top(weight)
            if found and (best is None or found[0] < best[0]):
                best = found
        return best[1] if best else None

    def lift(self, account: Account[Ticket]) -> None:
        account.counter = max(account.counter, self._floor())

    def offer(self, account: Account[Ticket], weight: int) -> None:
        """Put a principal where it belongs, if that is further ahead than where it is."""
        first = account.first(weight)
        if first is None:
            return
        key, listed = account.key(first.number), account.listed.get(weight)
        if listed is None or key < listed:
            account.listed[weight] = key
            heapq.heappush(self.heaps.setdefault(weight, []), (key, account))

    def note_gone(self, account: Account[Ticket]) -> None:
        """None of its requests waits any more."""
        self._last = account

    def forget_if_owed_nothing(self, account: Account[Ticket]) -> None:
        """One that is idle and would be lifted when it comes back need not be remembered."""
        if not account.num_open and account.counter <= self._floor():
            del self._accounts[account.principal]

    def _floor(self) -> int:
        first = self.first(None)
        if first is not None:
            return first.account.confirmed
        return self._last.confirmed if self._last else 0

    def _top(self, weight: int) -> tuple[Key, Entry[Ticket]] | None:
        """Whose request of so many places is next, once what is out of date has been put right."""
        heap = self.heaps[weight]
        while heap:
            key, account = heap[0]
            first = account.first(weight)
            if account.listed.get(weight) != key:
                heapq.heappop(heap)  # it is further ahead as well
            elif first is None:
                heapq.heappop(heap)
                del account.listed[weight]
            elif (now := account.key(first.number)) != key:
                account.listed[weight] = now
                heapq.heapreplace(heap, (now, account))
            else:
                return key, first
        return None

    def _sweep(self) -> None:
        if len(self._accounts) < self._sweep_at:
            return
        for account in list(self._accounts.values()):
            self.forget_if_owed_nothing(account)
        self._sweep_at = max(_SWEEP_FROM, 2 * len(self._accounts))


class FairLine(Generic[Ticket]):
    """Everybody who waits at one priority, those who were set aside among them."""

    def __init__(self) -> None:
        self._tiers: dict[str, TierLine[Ticket]] = {}
        self._last: TierLine[Ticket] | None = None
        self._typical_tokens = 1
        self.num_places = 0  # that those who wait need

    def __bool__(self) -> bool:
        return self.num_places > 0

    # ---- questions ----

    @property
    def num_principals(self) -> int:
        return sum(tier.num_principals for tier in self._tiers.values())

    def first(self, max_weight: int | None = None) -> Entry[Ticket] | None:
        """The next that needs at most so many places."""
        best: tuple[tuple[int, bool, int], Entry[Ticket]] | None = None
        for tier in self._waiting_tiers():
            if (entry := tier.first(max_weight)) is not None:
                key = (tier.virtual, tier.places > 0, entry.number)
                if best is None or key < best[0]:
                    best = key, entry
        return best[1] if best else None

    def firsts(self) -> list[Entry[Ticket]]:
        """The next of each tier, in the order of the tiers."""
        found = [(tier, tier.first(None)) for tier in self._waiting_tiers()]
        keyed = [
            ((tier.virtual, tier.places > 0, entry.number), entry) for tier, entry in found if entry
        ]
        return [entry for _, entry in sorted(keyed, key=lambda pair: pair[0])]

    def in_order(self) -> Iterator[Entry[Ticket]]:
        """As they will be served if each takes about as many tokens as others did and nobody new
        comes. The first k cost k·log k."""
        forecasts = [_Forecast(tier, self._typical_tokens) for tier in self._waiting_tiers()]
        while forecasts := [each for each in forecasts if each.next is not None]:
            yield min(forecasts, key=_Forecast.key).take()

    def share(self, account: Account[Ticket], num_places: int) -> float:
        """Of so many places, what is due to a principal while those are active who are now."""
        weights = sum(tier.weight for tier in self._tiers.values() if tier.num_active)
        tier = account.tier
        return num_places * tier.weight / (weights * tier.num_active)

    # ---- events ----

    def open(self, tier: Tier, principal: str) -> Account[Ticket]:
        """The account of one more request. Each is closed once."""
        if (line := self._tiers.get(tier.name)) is None:
            line = self._tiers[tier.name] = TierLine()
        line.weight = tier.weight
        account = line.account(principal)
        line.num_active += not account.num_open
        account.num_open += 1
        return account

    def close(self, entry: Entry[Ticket]) -> None:
        account = entry.account
        self._confirm(entry)
        account.num_open -= 1
        account.tier.num_active -= not account.num_open
        account.tier.forget_if_owed_nothing(account)
        if entry.charged:
            self._typical_tokens += (entry.charged - self._typical_tokens) // 5

    def add(self, entry: Entry[Ticket]) -> None:
        """A new one, behind those of its principal."""
        account, tier = entry.account, entry.account.tier
        if not tier.num_waiting:
            tier.virtual = max(tier.virtual, self._floor())
        if not account.num_waiting:
            tier.lift(account)
        account.lines.setdefault(entry.weight, OrderedDict())[entry.number] = entry
        self._note_added(entry)

    def put_back(self, entry: Entry[Ticket]) -> None:
        """One that was set aside, before those of its principal that came after it. All that are
        before it were set aside as well."""
        line = entry.account.lines.setdefault(entry.weight, OrderedDict())
        earlier = list(itertools.takewhile(lambda number: number < entry.number, line))
        line[entry.number] = entry
        for number in (entry.number, *reversed(earlier)):
            line.move_to_end(number, last=False)
        self._note_added(entry)

    def remove(self, entry: Entry[Ticket]) -> None:
        account, tier = entry.account, entry.account.tier
        line = account.lines[entry.weight]
        del line[entry.number]
        if not line:
            del account.lines[entry.weight]
        account.num_waiting -= 1
        tier.num_waiting -= 1
        self.num_places -= entry.weight
        if not account.num_waiting:
            tier.note_gone(account)
        if not tier.num_waiting:
            self._last = tier

    def charge_prompt(self, entry: Entry[Ticket]) -> None:
        """It starts, and its prompt will be computed, as far as is known, and one token anyway."""
        self.charge(entry, max(1, entry.tokens))
        entry.unconfirmed = entry.charged
        entry.account.unconfirmed += entry.charged
        entry.account.tier.unconfirmed += entry.charged

    def charge(self, entry: Entry[Ticket], tokens: int) -> None:
        """Tokens were served; or, less than 0, had been charged and were not."""
        self._confirm(entry)
        entry.charged += tokens
        entry.account.counter += tokens
        entry.account.tier.virtual += tokens * _UNIT // entry.account.tier.weight
        if tokens < 0:
            self._move_up(entry.account)

    def hold(self, account: Account[Ticket], places: int) -> None:
        """It holds so many places more, or less."""
        account.places += places
        account.tier.places += places
        if not account.places:
            self._move_up(account)

    def _confirm(self, entry: Entry[Ticket]) -> None:
        """It has got somewhere, or will not."""
        entry.account.unconfirmed -= entry.unconfirmed
        entry.account.tier.unconfirmed -= entry.unconfirmed
        entry.unconfirmed = 0

    def _note_added(self, entry: Entry[Ticket]) -> None:
        account = entry.account
        account.num_waiting += 1
        account.tier.num_waiting += 1
        self.num_places += entry.weight
        account.tier.offer(account, entry.weight)

    def _move_up(self, account: Account[Ticket]) -> None:
        for weight in account.lines:
            account.tier.offer(account, weight)

    def _waiting_tiers(self) -> list[TierLine[Ticket]]:
        return [tier for tier in self._tiers.values() if tier.num_waiting]

    def _floor(self) -> int:
        waiting = self._waiting_tiers()
        if waiting:
            return min(tier.confirmed for tier in waiting)
        return self._last.confirmed if self._last else 0


def comes_before(one: Account[Ticket], other: Account[Ticket]) -> bool:
    """Has one been served no more than another, by the counters that decide between them?"""
    if one.tier is other.tier:
        return one.counter <= other.counter
    return one.tier.virtual <= other.tier.virtual


class _Forecast(Generic[Ticket]):
    """A tier as it will be when some more of it have been served. `next` is who is next then."""

    def __init__(self, tier: TierLine[Ticket], typical_tokens: int) -> None:
        self._weight = tier.weight
        self._virtual, self._is_holding = tier.virtual, tier.places > 0
        self._typical_tokens = typical_tokens
        self._heaps = [heap for heap in tier.heaps.values() if heap]
        self._num = itertools.count()
        self._seen: set[Account[Ticket]] = set()
        self._coming: list[tuple[Key, int, Entry[Ticket], Iterator[Entry[Ticket]]]] = []
        self._unseen = [(heap[0][0], i, 0) for i, heap in enumerate(self._heaps)]
        heapq.heapify(self._unseen)
        self.next = self._find_next()

    def key(self) -> tuple[int, bool, int]:
        assert self.next is not None
        return self._virtual, self._is_holding, self.next.number

    def take(self) -> Entry[Ticket]:
        """Serve the next one."""
        key, _, entry, rest = heapq.heappop(self._coming)
        tokens = max(1, entry.tokens, self._typical_tokens)
        self._virtual += tokens * _UNIT // self._weight
        self._is_holding = True
        if (following := next(rest, None)) is not None:
            self._await((key[0] + tokens, True, following.number), following, rest)
        self.next = self._find_next()
        return entry

    def _find_next(self) -> Entry[Ticket] | None:
        while self._unseen and (not self._coming or self._unseen[0][0] < self._coming[0][0]):
            self._see()
        return self._coming[0][2] if self._coming else None

    def _see(self) -> None:
        """One more entry of the tier's heaps, the least that is left. What is below it in its heap
        is none less."""
        _, i, position = heapq.heappop(self._unseen)
        heap = self._heaps[i]
        account = heap[position][1]
        for below in (2 * position + 1, 2 * position + 2):
            if below < len(heap):
                heapq.heappush(self._unseen, (heap[below][0], i, below))
        if account.num_waiting and account not in self._seen:
            self._seen.add(account)
            rest = account.in_order()
            first = next(rest)
            self._await(account.key(first.number), first, rest)

    def _await(self, key: Key, entry: Entry[Ticket], rest: Iterator[Entry[Ticket]]) -> None:
        heapq.heappush(self._coming, (key, next(self._num), entry, rest))


def _number(entry: Entry[Ticket]) -> int:
    return entry.number
