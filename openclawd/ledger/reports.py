"""Sums over the ledger, read through a connection of their own."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from openclawd.ledger.storage import open_reader, storage_errors

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Sums of ended requests with the same key. The total's key is empty."""

    key: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cancelled: int
    failed: int
    total_s: float


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Usage grouped `by`, over the last `since_s` seconds (None: all there is)."""

    by: str
    since_s: float | None
    rows: list[UsageRow]
    total: UsageRow

    def as_dict(self) -> dict[str, Any]:
        """The result of the `usage` operation."""
        total = asdict(self.total)
        del total["key"]
        rows = [asdict(row) for row in self.rows]
        return {"by": self.by, "since_s": self.since_s, "rows": rows, "total": total}


_KEYS: Final = {
    "model": "model",
    "principal": "principal",
    "app": "coalesce(app, '')",
    "op": "op",
    "day": "strftime('%Y-%m-%d', arrived_at, 'unixepoch', 'localtime')",
}


def read_usage(
    path: Path, by: str, *, since_s: float | None, now: float, principal: str | None = None
) -> UsageReport:
    """Sums by one of `openclawctl.wire.operations.USAGE_GROUPS`, of one principal's requests or of
    all; `now` is Unix time.

    Open requests are not in it. Days are those of the daemon's time zone and come in order, other
    groups by completion tokens, most first. Blocks on the disk. Raises `Unavailable`.
    """
    earliest = None if since_s is None else now - since_s
    order = "key" if by == "day" else "completion DESC, key"
    with contextlib.closing(open_reader(path)) as database, storage_errors(path):
        # nosec: both parts come from the tables above, never from a caller's text
        rows = database.execute(
            f"SELECT {_KEYS[by]} AS key, {_SUMS} GROUP BY key ORDER BY {order}",
            (earliest, principal),
        )
        found = [UsageRow(*row) for row in rows]
        total = database.execute(f"SELECT '', {_SUMS}", (earliest, principal)).fetchone()
    return UsageReport(by, since_s, found, UsageRow(*total))


_SUMS: Final = """
    count(*), coalesce(sum(p.number), 0), coalesce(sum(h.number), 0),
    coalesce(sum(c.number), 0) AS completion,
    coalesce(sum(state = 'cancelled'), 0), coalesce(sum(state = 'failed'), 0), total(total_s)
    FROM requests AS r
    LEFT JOIN tokens AS p ON p.request_id = r.request_id AND p.kind = 'prompt'
    LEFT JOIN tokens AS h ON h.request_id = r.request_id AND h.kind = 'cached'
    LEFT JOIN tokens AS c ON c.request_id = r.request_id AND c.kind = 'completion'
    WHERE state <> 'open' AND (?1 IS NULL OR arrived_at >= ?1)
    AND (?2 IS NULL OR principal = ?2)
"""
