"""The samples of a report, read from the ledger: sums by hour, never a row for each request.

The one module of `insights` that knows SQL and the clock's time zone. What of it depends on the
table of requests stands in `daily_samples`.
"""

from __future__ import annotations

import calendar
import contextlib
import sqlite3
import time
from typing import TYPE_CHECKING, Final

from openclawctl.wire.errors import DeadlineExceeded
from openclawd.ledger.insights.report import Insights, analyse
from openclawd.ledger.insights.samples import Sample
from openclawd.ledger.model_peaks import read_peaks
from openclawd.ledger.prefix_use import DAY_S, read_prefix_use
from openclawd.ledger.storage import open_reader, storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from openclawd.ledger.insights.samples import ModelSize

HOUR_S: Final = 3_600

MAX_READ_S: Final = 20.0
"""How long the database may be read for a report before it is given up."""

_STEPS_BETWEEN_LOOKS: Final = 100_000
"""Of SQLite's virtual machine, about a millisecond."""


def read_insights(
    path: Path,
    sizes: Sequence[ModelSize],
    *,
    since_s: float,
    principal: str | None,
    model: str | None,
    now: float,
) -> Insights:
    """The report on the last `since_s` seconds, from the beginning of that day on; `now` is Unix
    time. None stands for every principal and every model; one principal's report says nothing of
    how models are configured. Blocks. Raises `Unavailable` or `DeadlineExceeded`."""
    since = _midnight(now - since_s)
    since_day = int(since // DAY_S)
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(contextlib.closing(open_reader(path)))
        stack.enter_context(storage_errors(path))
        stack.enter_context(_time_limit(database))
        samples = daily_samples(database, since, principal=principal, model=model)
        prefixes = read_prefix_use(database, since_day=since_day, principal=principal, model=model)
        peaks = read_peaks(database, since_day=since_day, model=model)
    return analyse(
        samples,
        prefixes,
        peaks if principal is None else [],
        sizes,
        now_hour=local_hour(int(now // HOUR_S)),
    )


def daily_samples(
    database: sqlite3.Connection, since: float, *, principal: str | None, model: str | None
) -> list[Sample]:
    """Ended requests since a Unix time, by hour, principal, model and operation."""
    cursor = database.execute(
        """SELECT arrived_ms / 3600000, p.name, m.name, o.name, count(*),
            coalesce(sum(prompt), 0), coalesce(sum(cached), 0), coalesce(sum(completion), 0),
            sum(f.name IS 'length'),
            coalesce(sum(iif(f.name IS 'length', completion, 0)), 0),
            coalesce(sum(cost), 0)
        FROM request_rows AS r
        JOIN names AS p ON p.id = r.principal JOIN names AS m ON m.id = r.model
        JOIN names AS o ON o.id = r.op LEFT JOIN names AS f ON f.id = r.finish_reason
        WHERE state <> 0 AND arrived_ms >= ?1
            AND (?2 IS NULL OR p.name = ?2) AND (?3 IS NULL OR m.name = ?3)
        GROUP BY 1, 2, 3, 4""",
        (round(since * 1000), principal, model),
    )
    hours: dict[int, int] = {}
    samples = []
    for hour, *names, requests, prompt, cached, completion, cut, cut_tokens, cost in cursor:
        if hour not in hours:
            hours[hour] = local_hour(hour)
        samples.append(
            Sample(
                hour=hours[hour],
                principal=names[0],
                model=names[1],
                op=names[2],
                requests=requests,
                prompt_tokens=prompt,
                cached_tokens=cached,
                completion_tokens=completion,
                cut_answers=cut,
                cut_tokens=cut_tokens,
                cost=cost,
            )
        )
    return samples


def local_hour(hour: int) -> int:
    """The local wall-clock hour (`Sample.hour`) in which an hour of Unix time begins. When clocks
    are set back, two hours become one."""
    return calendar.timegm(time.localtime(hour * HOUR_S)) // HOUR_S


def _midnight(at: float) -> float:
    """The beginning of the local day of a Unix time."""
    day = time.localtime(max(0.0, at))
    return time.mktime((day.tm_year, day.tm_mon, day.tm_mday, 0, 0, 0, 0, 0, -1))


@contextlib.contextmanager
def _time_limit(database: sqlite3.Connection) -> Iterator[None]:
    ends_at = time.monotonic() + MAX_READ_S
    database.set_progress_handler(lambda: time.monotonic() > ends_at, _STEPS_BETWEEN_LOOKS)
    try:
        yield
    except sqlite3.OperationalError as error:
        if time.monotonic() <= ends_at:
            raise
        raise DeadlineExceeded(
            f"the ledger was read for {MAX_READ_S:.0f} s and there is still more",
            hint="ask for a shorter time (--since), or prune the ledger",
        ) from error
