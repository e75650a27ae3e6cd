"""Days and hours of the daemon's time zone, as ranges of Unix time.

Pure but for the time zone of the process. A day has 23 to 25 hours where clocks are put forward
and back; an hour that comes twice is two, told apart by its offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

HOUR_S: Final = 3600


@dataclass(frozen=True, slots=True)
class Span:
    """`[start, end)` in Unix seconds. `label`: `2026-10-25`, or `2026-10-25T02:00+01:00`."""

    start: int
    end: int
    label: str


def day_of(at: float) -> Span:
    """The day that holds a moment."""
    midnight = datetime.fromtimestamp(at).replace(  # noqa: DTZ006 - the local time is what is asked
        hour=0, minute=0, second=0, microsecond=0
    )
    start = _unix(midnight)
    return Span(start, _unix(midnight + timedelta(days=1)), midnight.date().isoformat())


def hour_of(at: float) -> Span:
    """The hour by the local clock that holds a moment. Where the clock is changed by less than an
    hour (Lord Howe Island), the last one before it is longer or shorter."""
    start = _full_hour(int(at // 1))
    end = max(_full_hour(start + HOUR_S), start + HOUR_S // 2)
    return Span(start, end, local(start))


def local(at: float) -> str:
    """A moment by the local clock, to the minute, with its offset."""
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="minutes")


def _full_hour(at: int) -> int:
    offset = datetime.fromtimestamp(at).astimezone().utcoffset()
    assert offset is not None, "a local time has an offset"
    return at - (at + int(offset.total_seconds())) % HOUR_S


def _unix(naive_local: datetime) -> int:
    return int(naive_local.timestamp())
