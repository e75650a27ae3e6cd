"""Windows of time in which budgets count: rolling hours, calendar units of a time zone, for ever.

Owns which *slot* a moment belongs to and which slots count at a moment. A slot is known by its
absolute start in Unix seconds, so counters that are kept by slot survive whatever the clock does:
set back, it finds the old ones; set forward, it begins new ones. Pure: `now` is wall time in whole
Unix seconds; the only knowledge of the world is the time zone database.

Invariants: `slot(now) <= now`, and moments of one slot have one `slot`; at any `now` the slot of
`now` is one of those that count.
"""

from __future__ import annotations

import datetime as dt
import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from collections.abc import Callable

HOUR_S: Final = 3600

FOREVER: Final = 2**62
"""Later than any clock shows, in Unix seconds."""

SLOTS_OF_ROLLING: Final = 60
"""A rolling window counts in sixtieths of its length: 24 minutes of a day. The oldest sixtieth
counts whole until all of it is out, so what is used comes back up to that much late, and no stretch
of the window's length ever holds more than the limit."""

_PROBE_S: Final = 900
"""Where a local hour ends is looked for in steps of a quarter of an hour: clocks have been changed
by multiples of it only, at multiples of it, since 1970 (but for Liberia in 1972)."""


@dataclass(frozen=True, slots=True)
class Span:
    """The slots from `first` to `last`, by their starts, both inclusive."""

    first: int
    last: int

    def __contains__(self, slot: int) -> bool:
        return self.first <= slot <= self.last


@dataclass(frozen=True, slots=True)
class Rolling:
    """The last `length_s` seconds, a multiple of an hour. A clock that was set back leaves usage in
    slots of the future; these count as well, up to a length ahead: else the same stretch of time
    could be used twice."""

    length_s: int

    @property
    def slot_s(self) -> int:
        return self.length_s // SLOTS_OF_ROLLING

    @property
    def name(self) -> str:
        days, hours = divmod(self.length_s // HOUR_S, 24)
        return f"{days}d" if not hours else f"{self.length_s // HOUR_S}h"

    def slot(self, now: int) -> int:
        return now // self.slot_s * self.slot_s

    def counted(self, now: int) -> Span:
        return Span(self.slot(now - self.length_s), self.slot(now + self.length_s))

    def next_slot(self, slot: int) -> int:
        """The one after it. Until then the same slots count."""
        return slot + self.slot_s

    def ends_at(self, slot: int) -> int:
        """From when on the slot counts no longer."""
        return slot + self.slot_s + self.length_s


class Unit(enum.Enum):
    """What calendar windows there are. Weeks begin on Monday (ISO 8601)."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


@dataclass(frozen=True, slots=True)
class Calendar:
    """The hour, day, week or month of the clock on the wall. It has one slot: itself. When clocks
    go forward or back a day has 23 or 25 hours, and an hour may have half of one more."""

    unit: Unit
    zone: dt.tzinfo

    @property
    def name(self) -> str:
        return f"{self.unit.value} {self.zone}"

    def slot(self, now: int) -> int:
        return int(_start(dt.datetime.fromtimestamp(now, self.zone), self.unit).timestamp())

    def counted(self, now: int) -> Span:
        slot = self.slot(now)
        return Span(slot, slot)

    def next_slot(self, slot: int) -> int:
        return self.ends_at(slot)

    def ends_at(self, slot: int) -> int:
        """The start of the next one."""
        if self.unit is Unit.HOUR:
            return self._end_of_hour(slot)
        start = dt.datetime.fromtimestamp(slot, self.zone).replace(tzinfo=None, fold=0)
        return int(_next(start, self.unit).replace(tzinfo=self.zone).timestamp())

    def _end_of_hour(self, slot: int) -> int:
        probe = slot + _PROBE_S
        while (start := self.slot(probe)) <= slot:
            probe += _PROBE_S
        return start


@dataclass(frozen=True, slots=True)
class Lifetime:
    """All time: what is used stays used."""

    @property
    def name(self) -> str:
        return "lifetime"

    def slot(self, now: int) -> int:
        del now
        return 0

    def counted(self, now: int) -> Span:
        del now
        return Span(0, 0)

    def next_slot(self, slot: int) -> int:
        del slot
        return FOREVER

    def ends_at(self, slot: int) -> None:
        del slot


Window = Rolling | Calendar | Lifetime


def zone_named(name: str) -> dt.tzinfo:
    """The time zone of a name such as `Europe/Berlin`; UTC also where no database is installed.
    Raises `ValueError`, `KeyError` or `OSError` for what is none."""
    return dt.UTC if name == "UTC" else ZoneInfo(name)


def local_time(moment: int, zone: dt.tzinfo) -> str:
    """ISO 8601 with the offset, such as `2026-11-01T00:00:00+01:00`."""
    return dt.datetime.fromtimestamp(moment, zone).isoformat()


def _start(local: dt.datetime, unit: Unit) -> dt.datetime:
    """The start of the unit that a local time is in.

    `fold` stays for hours: the second 2:30 of a night in autumn is in the second hour that begins
    at 2:00. A midnight that is skipped is, without a fold, the moment at which the clocks went
    forward; of one that comes twice it is the first.
    """
    hour = local.replace(minute=0, second=0, microsecond=0)
    midnight = hour.replace(hour=0, fold=0)
    return _STARTS[unit](hour if unit is Unit.HOUR else midnight)


_STARTS: Final[dict[Unit, Callable[[dt.datetime], dt.datetime]]] = {
    Unit.HOUR: lambda hour: hour,
    Unit.DAY: lambda midnight: midnight,
    Unit.WEEK: lambda midnight: midnight - dt.timedelta(days=midnight.weekday()),
    Unit.MONTH: lambda midnight: midnight.replace(day=1),
}


def _next(local: dt.datetime, unit: Unit) -> dt.datetime:
    """The midnight at which the next day, week or month begins, from a time in this one's first
    day: the first hour of that is not always midnight's."""
    midnight = _start(local, unit)
    if unit is Unit.MONTH:
        return (midnight + dt.timedelta(days=32)).replace(day=1)
    return midnight + dt.timedelta(days=7 if unit is Unit.WEEK else 1)
