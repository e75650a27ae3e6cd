"""Rate limits: how many tokens and requests in how long, and who waits for room.

Pure: tickets and `now` in, decisions out, as with `queue.py`. A ticket is whatever the caller uses
to tell its requests apart. How use is counted and forgotten is `quotas.py`'s.

- A rule counts the requests that it fits, one count for each of its buckets (`Per`). All rules that
  fit a request must have room for it at the same moment; before, nothing is taken.
- Taken are one request and its prompt tokens, cached ones too, when it is admitted, and completion
  tokens as they come, whether there is room or not: what runs is never cut, later requests wait.
- A request that ends before it was computed gets its tokens back. It stays counted as a request,
  else asking and cancelling would be free.
- Where a rule says `reject`, a request without room is refused; where it says `queue`, it waits. It
  waits in the line of the one bucket that keeps it longest, in order of arrival. Those that came
  later to that bucket wait behind it, however little they need; in its other buckets nobody waits
  for it. So one who has used up a count of its own does not stand in everybody's way.
- What can never be admitted, for it needs more than the whole limit, is refused for good.

Invariants: whoever waits is in exactly one line, and never in that of a rule that rejects; nobody
passes an earlier one in its line; when `next_at` has come, `wake` has something to look at.
"""

from __future__ import annotations

import enum
import heapq
import itertools
import math
from bisect import insort
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from openclawctl.wire.errors import LimitExceeded, RateLimited
from openclawctl.wire.units import format_duration
from openclawd.admission.quotas import Lease, Meter, Need, QuotaStore, WindowStore
from openclawd.admission.subjects import MAX_KNOWN, Match, Per, Subject

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Ticket = TypeVar("Ticket")

TOKENS: Final = "tokens"
REQUESTS: Final = "requests"


class OnExceed(enum.Enum):
    """What becomes of a request that a rule has no room for."""

    REJECT = "reject"
    QUEUE = "queue"


@dataclass(frozen=True, slots=True)
class RateRule:
    """`tokens` and `requests` are the most in any `window_s`; None is no limit. `max_wait_s` and
    `max_waiting`, the length of one bucket's line, matter with `QUEUE` only."""

    name: str
    match: Match
    per: Per
    tokens: int | None
    requests: int | None
    window_s: float
    on_exceed: OnExceed
    max_wait_s: float
    max_waiting: int


@dataclass(frozen=True, slots=True)
class RatePlace:
    """Where one who waits stands: `position` 1 is next in the line of `rule`. `eta_s` is exact if
    nobody gives up, nothing is charged meanwhile, and no other rule stands in the way by then."""

    position: int
    eta_s: float
    rule: str


@dataclass(frozen=True, slots=True)
class RateStanding:
    """One count as `whoami` shows it. `used` is over `limit` while it is in debt; `retry_after_s`
    is how long until one more has room."""

    rule: str
    unit: str
    used: int
    limit: int
    window_s: float
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class _Bucket:
    """One count, or two, of a rule. `meters` are those that it limits."""

    rule: RateRule
    name: str
    meters: tuple[Meter, ...]

    @property
    def key(self) -> tuple[str, str]:
        return self.rule.name, self.name


@dataclass(frozen=True, slots=True)
class _Buckets:
    """Those that a subject's requests are in, and their meters. No prompt of more than
    `most_tokens` can ever be admitted."""

    each: tuple[_Bucket, ...]
    meters: tuple[Meter, ...]
    token_meters: tuple[Meter, ...]
    most_tokens: float

    @classmethod
    def of(cls, rules: Iterable[RateRule], subject: Subject) -> _Buckets:
        each = tuple(_bucket(rule, subject) for rule in rules if rule.match.fits(subject))
        meters = tuple(meter for bucket in each for meter in bucket.meters)
        token_meters = tuple(meter for meter in meters if meter.unit == TOKENS)
        most_tokens = min((meter.limit for meter in token_meters), default=math.inf)
        return cls(each, meters, token_meters, most_tokens)


@dataclass(slots=True)  # not frozen: one is made for every request
class Grant:
    """What was taken for one request that may go on."""

    buckets: _Buckets
    lease: Lease


@dataclass(slots=True, eq=False)
class _Entry(Generic[Ticket]):
    """One who waits. `number` is the order of arrival."""

    ticket: Ticket
    number: int
    prompt_tokens: int
    buckets: _Buckets
    arrived_at: float
    line: _Line[Ticket] | None = None


@dataclass(slots=True, eq=False)
class _Line(Generic[Ticket]):
    """Those who wait for one bucket, in order of arrival. `look_at` is when something may happen to
    the first: as all have the same `max_wait_s`, nobody else's time is over earlier."""

    bucket: _Bucket
    entries: list[_Entry[Ticket]] = field(default_factory=list)
    look_at: float = 0.0


_Alarm = tuple[float, int, int, _Line[Ticket]]
"""When to look at a line; of several at once, that of the earliest arrival first. The second number
makes each one different, so that lines are never compared."""


@dataclass(frozen=True, slots=True)
class _Obstacle:
    """A bucket that has no room for a request before `at`, those ahead of it in line included."""

    bucket: _Bucket
    at: float


class RateLimiter(Generic[Ticket]):
    """`now` is the monotonic clock in seconds, here and in the store."""

    def __init__(self, rules: Sequence[RateRule], store: QuotaStore | None = None) -> None:
        self._rules = tuple(rules)
        self._store = WindowStore() if store is None else store
        self._buckets_of = lru_cache(MAX_KNOWN)(self._make_buckets)
        self._waiting: dict[Ticket, _Entry[Ticket]] = {}
        self._lines: dict[tuple[str, str], _Line[Ticket]] = {}
        self._alarms: list[_Alarm[Ticket]] = []
        self._changed: dict[tuple[str, str], None] = {}
        self._numbers = itertools.count()

    # ---- questions ----

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def next_at(self) -> float | None:
        """When `wake` is to be called; None while nobody waits."""
        while self._alarms and self._is_stale(self._alarms[0]):
            heapq.heappop(self._alarms)
        return self._alarms[0][0] if self._alarms else None

    def is_waiting(self, ticket: Ticket) -> bool:
        return ticket in self._waiting

    def line(self, ticket: Ticket) -> list[Ticket]:
        """The line in which one who waits stands, the next first."""
        return _tickets(self._line_of(self._waiting[ticket]))

    def place(self, ticket: Ticket, *, now: float) -> RatePlace:
        """Where one who waits stands."""
        entry = self._waiting[ticket]
        line = self._line_of(entry)
        eta_s = self._room_at(entry, line.bucket, now) - now
        return RatePlace(line.entries.index(entry) + 1, round(eta_s, 6), line.bucket.rule.name)

    def standing(self, subject: Subject, *, now: float) -> list[RateStanding]:
        """Every count that a request of this subject would be in."""
        return self._standings(subject, tokens=1, now=now)

    def foresee(self, subject: Subject, *, prompt_tokens: int, now: float) -> list[RateStanding]:
        """The same, `retry_after_s` being how long until there is room for this prompt. Raises
        `LimitExceeded` if there never is."""
        _check_possible(self._buckets_of(subject), prompt_tokens)
        return self._standings(subject, tokens=prompt_tokens, now=now)

    def _standings(self, subject: Subject, *, tokens: int, now: float) -> list[RateStanding]:
        amounts = {TOKENS: tokens, REQUESTS: 1}
        return [
            RateStanding(
                rule=bucket.rule.name,
                unit=meter.unit,
                used=self._store.used(meter, now=now),
                limit=meter.limit,
                window_s=bucket.rule.window_s,
                retry_after_s=round(
                    self._store.due(meter, [amounts[meter.unit]], now=now) - now, 6
                ),
            )
            for bucket in self._buckets_of(subject).each
            for meter in bucket.meters
        ]

    # ---- events ----

    def ask(
        self, ticket: Ticket, subject: Subject, *, prompt_tokens: int, now: float
    ) -> Grant | None:
        """Admit a request, or have it wait (None) until `wake` tells what became of it.

        Raises `RateLimited`, with the time after which the same request would be admitted if
        nothing else came; `LimitExceeded` if it never can be.
        """
        buckets = self._buckets_of(subject)
        _check_possible(buckets, prompt_tokens)
        if not self._lines and (grant := self._grant(buckets, prompt_tokens, now)):
            return grant
        entry = _Entry(ticket, next(self._numbers), prompt_tokens, buckets, arrived_at=now)
        outcome = self._decide(entry, now)
        if isinstance(outcome, Grant):
            return outcome
        self._check_may_wait(entry, outcome, now)
        self._waiting[ticket] = entry
        self._join(entry, outcome, now)
        return None

    def wake(self, now: float) -> list[tuple[Ticket, Grant | RateLimited]]:
        """What has become of those whose wait is over by now, in order."""
        ended: list[tuple[Ticket, Grant | RateLimited]] = []
        while (at := self.next_at()) is not None and at <= now:
            line = heapq.heappop(self._alarms)[-1]
            ended += self._move_up(line, now)
        return ended

    def leave(self, ticket: Ticket, *, now: float) -> None:
        """One who waits gives up. `wake` is to be called: the next may have room."""
        entry = self._waiting.pop(ticket)
        line = self._line_of(entry)
        line.entries.remove(entry)
        self._changed[line.bucket.key] = None
        self._look_again(line, now)

    def replace_rules(self, rules: Sequence[RateRule], *, now: float) -> None:
        """Other rules from now on. Who waits goes on to wait by the rules under which it came, but
        for their limits; `wake` is to be called. What was used of a rule with the same name and
        window counts on."""
        self._rules = tuple(rules)
        self._buckets_of.cache_clear()
        nobody = Subject("")
        meters = [meter for rule in rules for meter in _bucket(rule, nobody).meters]
        self._store.change_limits(meters, now=now)
        for line in list(self._lines.values()):
            self._look_again(line, now)

    def charge(self, grant: Grant, num_tokens: int, *, now: float) -> None:
        """Completion tokens have come."""
        self._store.charge(grant.buckets.token_meters, num_tokens, now=now)

    def refund(self, grant: Grant, *, now: float) -> None:
        """It ends without having been computed, and stays counted as a request. `wake` is to be
        called: others may have room."""
        self._give_back(grant, grant.buckets.token_meters, now)

    def undo(self, grant: Grant, *, now: float) -> None:
        """As if it had never asked, because it asks anew as another one. `wake` is to be called."""
        self._give_back(grant, grant.buckets.meters, now)

    def _give_back(self, grant: Grant, meters: Iterable[Meter], now: float) -> None:
        for meter in meters:
            self._store.give_back(grant.lease, meter, now=now)
        for bucket in grant.buckets.each:
            if line := self._lines.get(bucket.key):
                self._look_again(line, now)

    def pop_changed_lines(self) -> list[tuple[str, list[Ticket]]]:
        """The lines in which somebody's position has changed since the last call: their rules, and
        who waits in them, the next first."""
        changed, self._changed = self._changed, {}
        lines = (self._lines[key] for key in changed if key in self._lines)
        return [(line.bucket.rule.name, _tickets(line)) for line in lines]

    # ---- decisions ----

    def _decide(self, entry: _Entry[Ticket], now: float) -> Grant | _Obstacle:
        """Take all it needs, or tell what stands in the way longest: a rule that rejects before all
        others, for then there is nothing to wait for."""
        buckets = entry.buckets
        is_behind = any(self._is_behind(entry, each) for each in buckets.each)
        if not is_behind and (grant := self._grant(buckets, entry.prompt_tokens, now)):
            return grant
        obstacles = [
            _Obstacle(bucket, at)
            for bucket in buckets.each
            if (at := self._room_at(entry, bucket, now)) > now or self._is_behind(entry, bucket)
        ]
        return max(obstacles, key=lambda each: (_rejects(each.bucket), each.at))

    def _grant(self, buckets: _Buckets, prompt_tokens: int, now: float) -> Grant | None:
        """Take all that a request needs, if there is room in every count."""
        lease = self._store.lease(_needs(buckets.meters, prompt_tokens), now=now)
        return None if lease is None else Grant(buckets, lease)

    def _is_behind(self, entry: _Entry[Ticket], bucket: _Bucket) -> bool:
        """Does an earlier one wait for this bucket?"""
        line = self._lines.get(bucket.key)
        return line is not None and bool(line.entries) and line.entries[0].number < entry.number

    def _room_at(self, entry: _Entry[Ticket], bucket: _Bucket, now: float) -> float:
        """When a bucket has room for a request after those ahead of it, if nothing else comes."""
        line = self._lines.get(bucket.key)
        ahead = [each for each in line.entries if each.number < entry.number] if line else []
        prompts = [each.prompt_tokens for each in (*ahead, entry)]
        return max(
            self._store.due(meter, prompts if meter.unit == TOKENS else [1] * len(prompts), now=now)
            for meter in bucket.meters
        )

    def _check_may_wait(self, entry: _Entry[Ticket], obstacle: _Obstacle, now: float) -> None:
        """Raise `RateLimited` if there is nothing, no room or no use to wait for."""
        rule = obstacle.bucket.rule
        line = self._lines.get(obstacle.bucket.key)
        num_waiting = len(line.entries) if line else 0
        if rule.on_exceed is OnExceed.REJECT:
            raise self._refusal(entry, obstacle.bucket, now, why="")
        if num_waiting >= rule.max_waiting:
            why = f"; {num_waiting} requests wait for it already (max_waiting)"
            raise self._refusal(entry, obstacle.bucket, now, why=why)
        if obstacle.at - entry.arrived_at > rule.max_wait_s:
            why = f"; it would wait longer than {format_duration(rule.max_wait_s)} (max_wait)"
            raise self._refusal(entry, obstacle.bucket, now, why=why)

    # ---- lines ----

    def _move_up(
        self, line: _Line[Ticket], now: float
    ) -> Iterator[tuple[Ticket, Grant | RateLimited]]:
        """Let go on whoever can, from the first of the line until one must stay."""
        while line.entries:
            entry = line.entries[0]
            outcome = self._outcome_for_first(entry, line, now)
            if isinstance(outcome, _Obstacle) and outcome.bucket.key == line.bucket.key:
                self._set_alarm(line, outcome.at)
                return
            del line.entries[0]
            self._changed[line.bucket.key] = None
            if isinstance(outcome, _Obstacle):
                self._join(entry, outcome, now)
            else:
                del self._waiting[entry.ticket]
                yield entry.ticket, outcome
        self._lines.pop(line.bucket.key, None)

    def _outcome_for_first(
        self, entry: _Entry[Ticket], line: _Line[Ticket], now: float
    ) -> Grant | RateLimited | _Obstacle:
        outcome = self._decide(entry, now)
        if isinstance(outcome, Grant):
            return outcome
        if _rejects(outcome.bucket):
            return self._refusal(entry, outcome.bucket, now, why="")
        max_wait_s = line.bucket.rule.max_wait_s
        if entry.arrived_at + max_wait_s <= now:
            why = f"; it has waited for {format_duration(max_wait_s)} (max_wait)"
            return self._refusal(entry, line.bucket, now, why=why)
        return outcome

    def _join(self, entry: _Entry[Ticket], obstacle: _Obstacle, now: float) -> None:
        bucket = obstacle.bucket
        line = self._lines.get(bucket.key)
        if line is None:
            line = self._lines[bucket.key] = _Line(bucket)
        entry.line = line
        insort(line.entries, entry, key=lambda each: each.number)
        self._changed[bucket.key] = None
        if line.entries[0] is entry:
            self._set_alarm(line, max(now, obstacle.at))

    def _line_of(self, entry: _Entry[Ticket]) -> _Line[Ticket]:
        assert entry.line is not None, "whoever waits is in a line"
        return entry.line

    def _look_again(self, line: _Line[Ticket], now: float) -> None:
        """Something has changed for those in a line."""
        if line.entries:
            self._set_alarm(line, now)
        else:
            self._lines.pop(line.bucket.key, None)

    def _set_alarm(self, line: _Line[Ticket], at: float) -> None:
        """Look at the first of a line then, or when its patience ends."""
        first = line.entries[0]
        line.look_at = min(at, first.arrived_at + line.bucket.rule.max_wait_s)
        if len(self._alarms) > 2 * len(self._lines):  # else those that are stale would pile up
            self._alarms = [alarm for alarm in self._alarms if not self._is_stale(alarm)]
            heapq.heapify(self._alarms)
        heapq.heappush(self._alarms, (line.look_at, first.number, next(self._numbers), line))

    def _is_stale(self, alarm: _Alarm[Ticket]) -> bool:
        at, *_, line = alarm
        return at != line.look_at or self._lines.get(line.bucket.key) is not line

    # ---- whose ----

    def _make_buckets(self, subject: Subject) -> _Buckets:
        """Use `_buckets_of`, which remembers."""
        return _Buckets.of(self._rules, subject)

    # ---- refusals ----

    def _refusal(
        self, entry: _Entry[Ticket], bucket: _Bucket, now: float, *, why: str
    ) -> RateLimited:
        """Names the count of the bucket that has room last; `retry_after_s` is about all rules."""
        rule = bucket.rule
        meter, amount = max(
            _needs(bucket.meters, entry.prompt_tokens),
            key=lambda need: self._store.due(need[0], [need[1]], now=now),
        )
        used = self._store.used(meter, now=now)
        at = max(self._room_at(entry, each, now) for each in entry.buckets.each)
        retry_after_s = round(at - now, 6)
        return RateLimited(
            f"rate limit {rule.name} allows {meter.limit} {meter.unit} in "
            f"{format_duration(rule.window_s)} {_whose(bucket)}: {used} are used, and this request "
            f"takes {amount}{why}",
            hint=f"try again in {format_duration(retry_after_s)}",
            retry_after_s=retry_after_s,
        )


def _check_possible(buckets: _Buckets, prompt_tokens: int) -> None:
    """Refuse what no waiting can help. Raises `LimitExceeded`."""
    if prompt_tokens <= buckets.most_tokens:
        return
    limited = ((bucket.rule, bucket.rule.tokens) for bucket in buckets.each)
    rule, most = next(each for each in limited if each[1] is not None and prompt_tokens > each[1])
    raise LimitExceeded(
        f"the prompt has {prompt_tokens} tokens; rate limit {rule.name} allows {most} in "
        f"{format_duration(rule.window_s)}, so that it can never be admitted",
        hint=f"shorten the prompt to {most} tokens, or ask the administrator to raise tokens of "
        "this rule in rate_limits",
    )


def _bucket(rule: RateRule, subject: Subject) -> _Bucket:
    name = rule.per.bucket(subject)
    window_us = round(rule.window_s * 1_000_000)
    limits = ((TOKENS, rule.tokens), (REQUESTS, rule.requests))
    meters = (
        Meter(rule.name, name, unit, limit, window_us)
        for unit, limit in limits
        if limit is not None
    )
    return _Bucket(rule, name, tuple(meters))


def _tickets(line: _Line[Ticket]) -> list[Ticket]:
    return [entry.ticket for entry in line.entries]


def _needs(meters: Iterable[Meter], prompt_tokens: int) -> list[Need]:
    """What one request takes of them when it is admitted."""
    return [(meter, prompt_tokens if meter.unit == TOKENS else 1) for meter in meters]


def _rejects(bucket: _Bucket) -> bool:
    return bucket.rule.on_exceed is OnExceed.REJECT


def _whose(bucket: _Bucket) -> str:
    """Whom a count is of, in words."""
    match bucket.rule.per:
        case Per.ALL:
            return "to all together"
        case Per.PRINCIPAL | Per.SESSION:
            return f"to {bucket.name.strip()}"
        case _:
            return f"to {bucket.rule.per.value} {bucket.name or '(none)'}"
