"""Sums over the ledger, and its rows one by one, read through a connection of their own.

Nothing is summed in advance, so a report can never differ from the rows: a million of them take
half a second to a second (docs/performance.md). Days and hours are ranges of the index on time,
each added up by itself, which is exact on days when clocks are changed; two at a time, since SQLite
lets other threads run meanwhile.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import LimitExceeded
from openclawctl.wire.operations import MAX_USAGE_ROWS
from openclawd.ledger.calendar import Span, day_of, hour_of
from openclawd.ledger.storage import open_reader, storage_errors

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from openclawctl.wire.operations import UsageParams

_NUM_READERS: Final = 2

MAX_GROUPS: Final = 50_000
"""Of one report, before its limit: some 40 MB of the daemon's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuery:
    """Which requests, grouped by what. `since` and `until` are Unix seconds, `[since, until)`, by
    when requests arrived; `principal` None is everybody's. `sort` is a group or a column. Money is
    of one `currency`."""

    by: Sequence[str] = ("model",)
    since: float | None = None
    until: float | None = None
    principal: str | None = None
    sort: str | None = None
    limit: int = MAX_USAGE_ROWS
    currency: str | None = None

    @classmethod
    def of(
        cls, params: UsageParams, *, now: float, principal: str | None, currency: str | None = None
    ) -> UsageQuery:
        """The query of a `usage` operation at `now` (Unix time)."""
        return cls(
            by=params.by,
            since=_moment(params.since_at, params.since_s, now),
            until=_moment(params.until_at, params.until_s, now),
            principal=principal,
            sort=params.sort,
            limit=MAX_USAGE_ROWS if params.limit is None else params.limit,
            currency=currency,
        )


@dataclass(slots=True)
class Sums:
    """Sums of ended requests, in the order of `_SUMS`. Times are microseconds, money is
    micro-units."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost: int = 0
    cancelled: int = 0
    failed: int = 0
    total_us: int = 0
    ttft_us: int = 0
    num_ttft: int = 0

    def add(self, other: Sums) -> None:
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            setattr(self, field.name, mine + theirs)

    def as_dict(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "cost": self.cost,
            "cancelled": self.cancelled,
            "failed": self.failed,
            "total_s": self.total_us / 1_000_000,
            "mean_ttft_s": self.ttft_us / self.num_ttft / 1_000_000 if self.num_ttft else None,
        }


_SUMS: Final = """count(*), coalesce(sum(prompt), 0), coalesce(sum(cached), 0),
    coalesce(sum(completion), 0), coalesce(sum(iif(currency IS :currency, cost, NULL)), 0),
    coalesce(sum(state = 2), 0), coalesce(sum(state = 3), 0), coalesce(sum(total_us), 0),
    coalesce(sum(ttft_us), 0), count(ttft_us)"""

_SPANS: Final = {"day": day_of, "hour": hour_of}


def read_usage(path: Path, query: UsageQuery) -> dict[str, Any]:
    """The result of the `usage` operation. Blocks on the disk. Raises `Unavailable`, and
    `LimitExceeded` for more groups than fit into memory.

    Open requests are not in it. Without `sort`, times come in order and other groups by completion
    tokens, most first. Rows over the limit are left out and counted in `left_out`.
    """
    with contextlib.closing(open_reader(path)) as database, storage_errors(path):
        ranges = list(_ranges(database, query))
    groups = _groups(path, query, ranges)
    total = Sums()
    for sums in groups.values():
        total.add(sums)
    shown = _sorted(groups, query)[: query.limit]
    return {
        "by": ",".join(query.by),
        "since": query.since,
        "until": query.until,
        "currency": query.currency,
        "rows": [_row(query.by, keys, sums) for keys, sums in shown],
        "left_out": len(groups) - len(shown),
        "total": total.as_dict(),
    }


def read_rows(
    path: Path, *, after_seq: int, limit: int, principal: str | None = None
) -> dict[str, Any]:
    """Ended requests with a `settled_seq` over `after_seq`, in that order, and the number to go on
    after. Blocks on the disk. Raises `Unavailable`."""
    with contextlib.closing(open_reader(path)) as database, storage_errors(path):
        database.execute("BEGIN")  # one state of the file for both queries
        (last,) = database.execute("SELECT seq FROM ledger_state").fetchone()
        whose = "" if principal is None else f"AND principal = ({_NAME_ID})"
        found = database.execute(
            "SELECT * FROM requests WHERE seq IN (SELECT seq FROM request_rows"
            f" WHERE settled_seq > :after {whose} ORDER BY settled_seq LIMIT :limit)"
            " ORDER BY settled_seq",
            {"after": after_seq, "limit": limit, "name": principal},
        )
        columns = [column[0] for column in found.description]
        rows = [dict(zip(columns, row, strict=True)) for row in found]
    next_seq = rows[-1]["settled_seq"] if len(rows) == limit else last
    return {
        "rows": rows,
        "next_seq": max(next_seq, after_seq),
        "has_more": len(rows) == limit,
        "last_seq": last,
    }


_NAME_ID: Final = "SELECT id FROM names WHERE name = :name"
_COLUMNS: Final = {
    "model": "model",
    "principal": "principal",
    "key": "key",
    "app": "app",
    "session": "session",
    "op": "op",
    "tier": "tier",
}
"""Columns of `request_rows` by what `usage` groups by; the values are numbers of `names`."""


_Groups = dict[tuple[str, ...], Sums]


def _groups(path: Path, query: UsageQuery, ranges: Sequence[_Range]) -> _Groups:
    """The sums of each group, by the values of `query.by`."""
    groups: _Groups = {}
    with ThreadPoolExecutor(_NUM_READERS, "usage") as pool:
        shares = [ranges[number::_NUM_READERS] for number in range(_NUM_READERS)]
        found = pool.map(lambda share: _groups_of(path, query, share), filter(None, shares))
        for share in found:
            _add(groups, share, query)
    return groups


def _groups_of(path: Path, query: UsageQuery, ranges: Sequence[_Range]) -> _Groups:
    """The same for some of the ranges, through a connection of their own."""
    columns = [_COLUMNS[name] for name in query.by if name not in _SPANS]
    names: dict[int | None, str] = {None: ""}
    groups: _Groups = {}
    with contextlib.closing(open_reader(path)) as database, storage_errors(path):
        for labels, start_ms, end_ms in ranges:
            for row in _sums(database, query, columns=columns, start_ms=start_ms, end_ms=end_ms):
                ids, sums = row[: len(columns)], Sums(*row[len(columns) :])
                values = iter([_name(database, names, number) for number in ids])
                keys = tuple(labels[by] if by in labels else next(values) for by in query.by)
                _add(groups, {keys: sums}, query)
    return groups


def _add(groups: _Groups, more: _Groups, query: UsageQuery) -> None:
    for keys, sums in more.items():
        groups.setdefault(keys, Sums()).add(sums)
    if len(groups) > MAX_GROUPS:
        raise LimitExceeded(
            f"usage by {','.join(query.by)} has more than {MAX_GROUPS} groups",
            hint="ask for a shorter time (--since, --until), or group by less",
        )


_Range = tuple[dict[str, str], int | None, int | None]


def _ranges(database: sqlite3.Connection, query: UsageQuery) -> Iterator[_Range]:
    """What is added up together: labels by `day` and `hour`, and `[start, end)` in milliseconds.
    Days and hours without any request are passed over."""
    since_ms, until_ms = _milliseconds(query.since), _milliseconds(query.until)
    by_time = [name for name in query.by if name in _SPANS]
    if not by_time:
        yield {}, since_ms, until_ms
        return
    while (first_ms := _first_ms(database, since_ms, until_ms)) is not None:
        spans = {name: _SPANS[name](first_ms / 1000) for name in by_time}
        end_ms = min(span.end for span in spans.values()) * 1000
        end_ms = end_ms if until_ms is None else min(end_ms, until_ms)
        yield _labels(spans), first_ms, end_ms
        since_ms = end_ms


def _labels(spans: dict[str, Span]) -> dict[str, str]:
    return {name: span.label for name, span in spans.items()}


def _first_ms(
    database: sqlite3.Connection, since_ms: int | None, until_ms: int | None
) -> int | None:
    """When the first request of a range arrived."""
    (first,) = database.execute(
        f"SELECT min(arrived_ms) FROM request_rows WHERE {_within(since_ms, until_ms)}",
        {"start": since_ms, "end": until_ms},
    ).fetchone()
    return None if first is None else int(first)


def _sums(
    database: sqlite3.Connection,
    query: UsageQuery,
    *,
    columns: Sequence[str],
    start_ms: int | None,
    end_ms: int | None,
) -> Iterator[tuple[Any, ...]]:
    whose = "" if query.principal is None else f" AND principal = ({_NAME_ID})"
    grouped = f" GROUP BY {', '.join(columns)}" if columns else " HAVING count(*) > 0"
    # nosec: every part comes from the tables above, never from a caller's text
    return database.execute(
        f"SELECT {', '.join([*columns, _SUMS])} FROM request_rows"
        f" WHERE state <> 0 AND {_within(start_ms, end_ms)}{whose}{grouped}",
        {
            "start": start_ms,
            "end": end_ms,
            "name": query.principal,
            "currency": _id_of(database, query.currency),
        },
    )


def _within(start_ms: int | None, end_ms: int | None) -> str:
    """The condition of a range, without what is open: SQLite then reads the table in its order."""
    conditions = [] if start_ms is None else ["arrived_ms >= :start"]
    conditions += [] if end_ms is None else ["arrived_ms < :end"]
    return " AND ".join(conditions) or "1"


def _id_of(database: sqlite3.Connection, name: str | None) -> int | None:
    """The number of a name; -1, which no row has, for one that no row ever had."""
    if name is None:
        return None
    found = database.execute(_NAME_ID, {"name": name}).fetchone()
    return int(found[0]) if found else -1


def _name(database: sqlite3.Connection, names: dict[int | None, str], number: int | None) -> str:
    if number not in names:
        found = database.execute("SELECT name FROM names WHERE id = ?", (number,)).fetchone()
        names[number] = found[0] if found else f"?{number}"
    return names[number]


def _row(by: Sequence[str], keys: tuple[str, ...], sums: Sums) -> dict[str, Any]:
    groups = dict(zip(by, keys, strict=True))
    return {"key": " ".join(keys), "groups": groups, **sums.as_dict()}


def _sorted(
    groups: dict[tuple[str, ...], Sums], query: UsageQuery
) -> list[tuple[tuple[str, ...], Sums]]:
    """By names and times upwards, by numbers downwards; ties by the groups in their order."""
    items = sorted(groups.items(), key=lambda item: item[0])
    sort = query.sort or ("" if query.by[0] in _SPANS else "completion_tokens")
    if sort in query.by:
        index = query.by.index(sort)
        items.sort(key=lambda item: item[0][index])
    elif sort:
        items.sort(key=lambda item: item[1].as_dict()[sort] or 0, reverse=True)
    return items


def _moment(at: float | None, ago_s: float | None, now: float) -> float | None:
    if at is not None:
        return at
    return None if ago_s is None else now - ago_s


def _milliseconds(at: float | None) -> int | None:
    return None if at is None else round(at * 1000)
