"""Budgets on disk: what is used in each counter, and which counters an open request is in.

Each function is one part of a transaction that its caller holds, so that a request's row and its
budgets change together: `reserve_budgets` with the row that opens it, `settle_budgets` with what
closes it, whoever closes it. What is used survives the pruning of requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from openclawd.admission.budget_rules import Amount, Charge, Counter

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence

    from openclawd.admission.budget_rules import Alert

BUDGET_TABLES: Final = (
    # A counter: `shape` is the window and what the budget is per, `slot` the absolute start of a
    # part of the window; it counts until `ends_at` (NULL: for ever). Times are Unix seconds, money
    # is micro-units, `alerted` thousandths of the limit.
    """CREATE TABLE budget_usage (
        id      INTEGER PRIMARY KEY,
        budget  TEXT NOT NULL,
        shape   TEXT NOT NULL,
        bucket  TEXT NOT NULL,
        slot    INTEGER NOT NULL,
        ends_at INTEGER,
        tokens  INTEGER NOT NULL DEFAULT 0 CHECK (tokens >= 0),
        money   INTEGER NOT NULL DEFAULT 0 CHECK (money >= 0),
        alerted INTEGER NOT NULL DEFAULT 0,
        UNIQUE (budget, shape, bucket, slot)
    ) STRICT""",
    # The counters that an open request has reserved in.
    """CREATE TABLE reserved_budgets (
        request_id ANY NOT NULL,
        usage_id   INTEGER NOT NULL REFERENCES budget_usage ON DELETE CASCADE,
        PRIMARY KEY (request_id, usage_id)
    ) STRICT, WITHOUT ROWID""",
)

KEEP_S: Final = 48 * 3600
"""A counter that counts no longer is read at start for so long, in case the clock was set back."""


def reserve_budgets(
    database: sqlite3.Connection, request_id: object, charges: Sequence[Charge]
) -> None:
    """Note which counters a request is in. For the transaction that inserts its open row;
    `request_id` as that row has it."""
    for charge in charges:
        database.execute(
            "INSERT INTO reserved_budgets (request_id, usage_id) VALUES (?, ?)",
            (request_id, _counter_id(database, charge)),
        )


def settle_budgets(
    database: sqlite3.Connection, request_id: object, *, tokens: int, money: int
) -> None:
    """Add what a request used to the counters it reserved in, and forget that it did. For the
    transaction that closes its row, with the same numbers; without effect the second time."""
    database.execute(
        "UPDATE budget_usage SET tokens = tokens + ?2, money = money + ?3"
        " WHERE id IN (SELECT usage_id FROM reserved_budgets WHERE request_id = ?1)",
        (request_id, tokens, money),
    )
    database.execute("DELETE FROM reserved_budgets WHERE request_id = ?", (request_id,))


def note_alerts(database: sqlite3.Connection, alerts: Sequence[Alert]) -> None:
    """Remember that these were said, so that nobody hears of them twice."""
    for alert in alerts:
        database.execute(
            "UPDATE budget_usage SET alerted = max(alerted, ?) WHERE id = ?",
            (alert.share, _counter_id(database, alert.charge)),
        )


def read_counters(database: sqlite3.Connection, *, now: float) -> Iterator[Counter]:
    """What the daemon begins with: the counters that count or did so lately. Requests that are open
    are not in them; at start there are none (`settle_interrupted`)."""
    rows = database.execute(
        "SELECT budget, shape, bucket, slot, ends_at, tokens, money, alerted FROM budget_usage"
        " WHERE ends_at IS NULL OR ends_at > ? ORDER BY slot",
        (int(now) - KEEP_S,),
    )
    for *charge, tokens, money, alerted in rows:
        yield Counter(Charge(*charge), Amount(tokens, money), alerted)


def prune_budgets(database: sqlite3.Connection, before: float) -> int:
    """Delete counters that have not counted since `before` (Unix time). Returns how many."""
    cursor = database.execute(
        "DELETE FROM budget_usage WHERE ends_at < ?"
        " AND id NOT IN (SELECT usage_id FROM reserved_budgets)",
        (int(before),),
    )
    return cursor.rowcount


def orphaned_reservations(database: sqlite3.Connection) -> int:
    """Counters held by requests that are not open: none, or the ledger is damaged."""
    (number,) = database.execute(
        "SELECT count(*) FROM reserved_budgets WHERE request_id NOT IN"
        " (SELECT request_id FROM request_rows WHERE state = 0)"
    ).fetchone()
    return int(number)


def _counter_id(database: sqlite3.Connection, charge: Charge) -> int:
    """The row of a counter, made if it is not there."""
    key = (charge.budget, charge.shape, charge.bucket, charge.slot)
    found = database.execute(
        "SELECT id FROM budget_usage WHERE budget = ? AND shape = ? AND bucket = ? AND slot = ?",
        key,
    ).fetchone()
    if found is not None:
        return int(found[0])
    cursor = database.execute(
        "INSERT INTO budget_usage (budget, shape, bucket, slot, ends_at) VALUES (?, ?, ?, ?, ?)",
        (*key, charge.ends_at),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid
