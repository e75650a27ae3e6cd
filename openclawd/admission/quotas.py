"""How much was used in the last while: sliding windows of integers on the monotonic clock.

Owns what is counted and when it is forgotten. Whose count a request is in, and what becomes of one
that is over it, is `rates.py`'s. Pure: times come in as arguments.

- A window is a log of what was taken and when. Something taken at `t` counts in `[t, t + window)`,
  so that in no such interval more than `limit` is granted. (A bucket that refills steadily, GCRA
  for example, would grant up to twice the limit in a window.)
- `charge` never refuses: what is over the limit is *debt*. A debt is taken out of the room of the
  windows that follow, as it becomes free, before anything else is granted. So the long run keeps
  the rate as well, however far running requests went over it.
- The limit may become another one: what was taken goes on to count, and what is over it is debt.
- The log is exact while it has at most `MAX_ENTRIES` entries. Once it has had more it is *coarse*:
  all that was taken within the same `2 / MAX_ENTRIES` of the window counts as taken with the last
  of it, up to 0.4 % of the window later than it was, never earlier. It is so until it is empty, for
  to put entries together takes longer than all the rest of a request's admission.

Invariants, which `Window.check` states: in debt, the window is full; entries are in order of time,
and at most `MAX_ENTRIES`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_ENTRIES: Final = 512
"""8 KiB for a window that is used all the time."""

MAX_WINDOWS: Final = 65_536
"""Most windows kept, some 40 MB if each was used a few times: a client that calls itself something
new with each request must not fill the memory. Whoever comes when that many are in use shares one
count with all the others who do."""

_US: Final = 1_000_000
_SWEPT_AT_ONCE: Final = 2
"""Windows looked at for each that was made, to drop those with nothing in them; and with each grant
while somebody has to share one. So whoever comes back finds nothing to do."""

_OTHERS: Final = "(others)"


# ---- one window ----


class Window:
    """At most `limit` within `window_us`. All times are integer microseconds of a clock that never
    goes back."""

    __slots__ = (
        "_amounts",
        "_cell_us",
        "_debt",
        "_is_coarse",
        "_limit",
        "_max",
        "_taken",
        "_times",
        "_window_us",
    )

    def __init__(self, limit: int, window_us: int, *, max_entries: int = MAX_ENTRIES) -> None:
        self._limit = limit
        self._window_us = window_us
        self._max = max_entries
        self._cell_us = max(1, 2 * window_us // max_entries)
        self._times = array("q")
        self._amounts = array("q")
        self._taken = 0
        self._debt = 0
        self._is_coarse = False

    # ---- questions ----

    @property
    def limit(self) -> int:
        return self._limit

    def used(self, now_us: int) -> int:
        """What counts now, debt included: so it may be more than the limit."""
        self._forget(now_us)
        return self._taken + self._debt

    def has_room(self, amount: int, now_us: int) -> bool:
        """Can so much be taken at once, or all there is where that is less?"""
        self._forget(now_us)
        return self._taken + self._debt + min(amount, self._limit) <= self._limit

    def due_us(self, amount: int, now_us: int) -> int:
        """When so much, at most the limit, can be taken at once if nothing comes meanwhile;
        `now_us` if it can be now."""
        self._forget(now_us)
        missing = self._taken + self._debt + amount - self._limit
        if missing <= 0:
            return now_us
        # In debt the window is full, and what expires is taken again at once: until the debt is
        # paid the same pattern comes round with each window.
        rounds, rest = divmod(missing - 1, self._limit)
        index = bisect_left(list(accumulate(self._amounts)), rest + 1)
        return self._times[index] + (1 + rounds) * self._window_us

    def last_due_us(self, amounts: Sequence[int], now_us: int) -> int:
        """When the last of several amounts can be taken, each as soon as it can be after the one
        before it."""
        *ahead, last = amounts
        if not ahead:
            return self.due_us(last, now_us)
        window = self._copy()
        for amount in ahead:
            now_us = window.due_us(amount, now_us)
            window.charge(amount, now_us)
        return window.due_us(last, now_us)

    # ---- commands ----

    def charge(self, amount: int, now_us: int) -> None:
        """Take it, whether there is room or not."""
        self._forget(now_us)
        self.take(amount, now_us)

    def take(self, amount: int, now_us: int) -> None:
        """The same right after `has_room` or `used` of the same moment."""
        self._debt += amount
        self._pay(now_us)

    def give_back(self, amount: int, *, taken_at_us: int, now_us: int) -> None:
        """Untake what was taken while there was room. Nothing happens if it counts no more."""
        self._forget(now_us)
        index = bisect_left(self._times, taken_at_us)
        if taken_at_us + self._window_us <= now_us or index == len(self._times):
            return
        amount = min(amount, self._amounts[index])
        self._amounts[index] -= amount
        self._taken -= amount
        self._pay(now_us)

    def change_limit(self, limit: int, now_us: int) -> None:
        """From now on so much may be taken. What counts is taken anew, each at its time."""
        self._forget(now_us)
        taken = list(zip(self._times, self._amounts, strict=True))
        debt, self._debt, self._taken, self._limit = self._debt, 0, 0, limit
        del self._times[:], self._amounts[:]
        for at_us, amount in taken:
            self._debt += amount
            self._pay(at_us)
        self.charge(debt, now_us)

    def check(self) -> None:
        """Raise `AssertionError` if an invariant is broken."""
        assert self._taken == sum(self._amounts) <= self._limit
        assert self._debt >= 0
        assert self._debt == 0 or self._taken == self._limit
        assert list(self._times) == sorted(set(self._times))
        assert len(self._times) == len(self._amounts) <= self._max

    # ---- the log ----

    def _copy(self) -> Window:
        window = Window(self._limit, self._window_us, max_entries=self._max)
        window._times, window._amounts = self._times[:], self._amounts[:]
        window._taken, window._debt = self._taken, self._debt
        window._is_coarse = self._is_coarse
        return window

    def _forget(self, now_us: int) -> None:
        """Drop what counts no more, and pay debts with the room that it leaves, as of then."""
        if self._debt >= self._limit:
            self._pay_whole_windows(now_us)
        until_us = now_us - self._window_us
        while self._times and self._times[0] <= until_us:
            num = bisect_right(self._times, until_us)
            expired = list(zip(self._times[:num], self._amounts[:num], strict=True))
            del self._times[:num], self._amounts[:num]
            for taken_at, amount in expired:
                self._taken -= amount
                if self._debt:
                    self._pay(taken_at + self._window_us)

    def _pay_whole_windows(self, now_us: int) -> None:
        """What `_forget` would do entry by entry, for as many full windows as have passed: a large
        debt and a long silence must not hold up the loop."""
        passed = max(0, now_us - self._times[-1]) // self._window_us
        rounds = min(self._debt // self._limit, passed)
        self._debt -= rounds * self._limit
        for index in range(len(self._times) if rounds else 0):
            self._times[index] += rounds * self._window_us

    def _pay(self, at_us: int) -> None:
        amount = min(self._debt, self._limit - self._taken)
        if not amount:
            return
        self._debt -= amount
        self._taken += amount
        if self._times and self._is_one_entry(self._times[-1], at_us):
            self._times[-1] = max(self._times[-1], at_us)
            self._amounts[-1] += amount
            return
        self._is_coarse = self._is_coarse and bool(self._times)
        self._times.append(at_us)
        self._amounts.append(amount)
        if len(self._times) > self._max:
            self._merge()

    def _is_one_entry(self, last_us: int, at_us: int) -> bool:
        """Does what is taken now count as taken with the last?"""
        if last_us >= at_us:
            return True
        return self._is_coarse and last_us // self._cell_us == at_us // self._cell_us

    def _merge(self) -> None:
        """Put together what was taken in the same cell, at the time of the last of it. A cell is
        the same interval for ever, so nothing moves by more than a cell however often it happens,
        and what is left is one entry a cell."""
        self._is_coarse = True
        last_of_cell = {time // self._cell_us: time for time in self._times}
        amounts = dict.fromkeys(last_of_cell.values(), 0)
        for time, amount in zip(self._times, self._amounts, strict=True):
            amounts[last_of_cell[time // self._cell_us]] += amount
        self._times = array("q", amounts.keys())
        self._amounts = array("q", amounts.values())


# ---- all of them ----


Key = tuple[str, str, str, int]


@dataclass(frozen=True, slots=True)
class Meter:
    """One count: what it is of (`unit`, for example tokens), of which rule, whose (`bucket`). It is
    the same count with another limit, so it is looked up by its `key`, with every token."""

    rule: str
    bucket: str
    unit: str
    limit: int
    window_us: int
    key: Key = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.rule, self.bucket, self.unit, self.window_us))


Need = tuple[Meter, int]
"""A count and how much of it."""


@dataclass(slots=True)  # not frozen: making those takes twice as long, for every request
class Lease:
    """What was granted, all at one moment."""

    needs: Sequence[Need]
    at_us: int


class QuotaStore(Protocol):
    """Where counts are kept. `now` is the monotonic clock in seconds.

    Nothing here waits. A store that several daemons share grants from what it has leased for this
    one, and has that renewed beside the requests; so no request costs a round trip.
    """

    def lease(self, needs: Sequence[Need], *, now: float) -> Lease | None:
        """Take all of it, or nothing (None) if one of the counts has no room."""

    def due(self, meter: Meter, amounts: Sequence[int], *, now: float) -> float:
        """When the last of these amounts can be taken, each as soon as it can be after the one
        before it, if nothing else comes; `now` if all can be now. None is over the limit."""

    def used(self, meter: Meter, *, now: float) -> int:
        """What counts now; more than the limit when it is in debt."""

    def charge(self, meters: Sequence[Meter], amount: int, *, now: float) -> None:
        """Take it of each, whether there is room or not."""

    def give_back(self, lease: Lease, meter: Meter, *, now: float) -> None:
        """Untake what a lease took of one count."""

    def change_limits(self, meters: Iterable[Meter], *, now: float) -> None:
        """All counts of these rules, units and windows, whosever they are, have these limits."""


class WindowStore:
    """The counts of one daemon, in its memory: a restart begins with empty windows."""

    def __init__(self, *, max_windows: int = MAX_WINDOWS) -> None:
        self._max_windows = max_windows
        self._windows: OrderedDict[Key, Window] = OrderedDict()
        self._num_new = 0

    def __len__(self) -> int:
        """How many windows are kept."""
        return len(self._windows)

    def lease(self, needs: Sequence[Need], *, now: float) -> Lease | None:
        now_us = _microseconds(now)
        if self._num_new or len(self._windows) > self._max_windows:
            self._sweep(now_us)
        windows = [self._window(meter) for meter, _ in needs]
        for window, (_, amount) in zip(windows, needs, strict=True):
            if not window.has_room(amount, now_us):
                return None
        for window, (_, amount) in zip(windows, needs, strict=True):
            window.take(amount, now_us)
        return Lease(needs, now_us)

    def due(self, meter: Meter, amounts: Sequence[int], *, now: float) -> float:
        now_us = _microseconds(now)
        window = self._find(meter) or Window(meter.limit, meter.window_us)
        due_us = _due_us(window, amounts, now_us)
        return now if due_us <= now_us else due_us / _US

    def used(self, meter: Meter, *, now: float) -> int:
        window = self._find(meter)
        return 0 if window is None else window.used(_microseconds(now))

    def charge(self, meters: Sequence[Meter], amount: int, *, now: float) -> None:
        now_us = _microseconds(now)
        for meter in meters:
            self._window(meter).charge(amount, now_us)

    def give_back(self, lease: Lease, meter: Meter, *, now: float) -> None:
        amount = sum(amount for each, amount in lease.needs if each.key == meter.key)
        if window := self._find(meter):
            window.give_back(amount, taken_at_us=lease.at_us, now_us=_microseconds(now))

    def change_limits(self, meters: Iterable[Meter], *, now: float) -> None:
        limits = {(each.rule, each.unit, each.window_us): each.limit for each in meters}
        for (rule, _, unit, window_us), window in self._windows.items():
            limit = limits.get((rule, unit, window_us), window.limit)
            if limit != window.limit:
                window.change_limit(limit, _microseconds(now))

    def _window(self, meter: Meter) -> Window:
        window = self._windows.get(meter.key) or self._find(meter)
        if window is None:
            is_full = len(self._windows) >= self._max_windows
            key = _key_of_others(meter) if is_full else meter.key
            window = self._windows[key] = Window(meter.limit, meter.window_us)
            self._num_new += 1
        return window

    def _find(self, meter: Meter) -> Window | None:
        """Questions make no windows."""
        window = self._windows.get(meter.key)
        if window is None and len(self._windows) >= self._max_windows:
            window = self._windows.get(_key_of_others(meter))
        return window

    def _sweep(self, now_us: int) -> None:
        num_wanted = max(self._num_new, len(self._windows) > self._max_windows)
        self._num_new = 0
        for _ in range(min(num_wanted * _SWEPT_AT_ONCE, len(self._windows))):
            key, window = next(iter(self._windows.items()))
            if window.used(now_us):
                self._windows.move_to_end(key)
            else:
                del self._windows[key]


def _key_of_others(meter: Meter) -> Key:
    return replace(meter, bucket=_OTHERS).key


def _due_us(window: Window, amounts: Sequence[int], now_us: int) -> int:
    """One that came while the limit was higher may need more than the whole of it, and takes all
    there is."""
    return window.last_due_us([min(each, window.limit) for each in amounts], now_us)


def _microseconds(now: float) -> int:
    return round(now * _US)
