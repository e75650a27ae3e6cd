"""What is written about a request, and the SQL that writes it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from openclawctl.wire.errors import Code
from openclawd.ledger.budgets import reserve_budgets, settle_budgets

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping, Sequence

    from openclawd.admission.budget_rules import Charge

PROGRESS_INTERVAL_S: Final = 0.25
"""How often the progress of open requests is written."""

MOST_TOKENS_PER_INTERVAL: Final = 250
"""What one sequence can produce in one interval: 1,000 tokens a second, more than any model here
reaches. Only what a killed daemon could not write down is charged by it."""


class Outcome(enum.Enum):
    """How a request ended."""

    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Counts(enum.Enum):
    """Are the token counts what was computed, or the most it can have been?"""

    EXACT = "exact"
    ESTIMATED = "estimated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """A request that is about to be queued. `reserved_tokens` is its prompt and the most it may
    produce; `arrived_at` is wall time in Unix seconds; `charges` are its budgets' counters."""

    request_id: str
    principal: str
    model: str
    op: str
    arrived_at: float
    prompt_tokens: int
    reserved_tokens: int
    app: str | None = None
    session: str | None = None
    charges: Sequence[Charge] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """How a request ended. `tokens` are counts by kind: `prompt`, `cached`, `completion`; `cost`
    is in micro-units."""

    request_id: str
    outcome: Outcome
    tokens: Mapping[str, int]
    finish_reason: str | None = None
    error_code: str | None = None
    counts: Counts = Counts.EXACT
    load_s: float = 0.0
    queue_s: float = 0.0
    ttft_s: float | None = None
    total_s: float = 0.0
    provider: str = "local"
    cache: str = "none"
    cost: int = 0


class RowError(Exception):
    """A write that does not fit what the ledger holds: a bug of the caller, not of the disk."""


def has_row(database: sqlite3.Connection, request_id: str) -> bool:
    """Was the request reserved?"""
    found = database.execute("SELECT 1 FROM requests WHERE request_id = ?", (request_id,))
    return found.fetchone() is not None


def insert_reservation(database: sqlite3.Connection, node: str, row: Reservation) -> None:
    """Add an open row. Raises `sqlite3.IntegrityError` if the request has one."""
    database.execute(
        "INSERT INTO requests (request_id, node, principal, app, session, model, op, state,"
        " arrived_at, reserved_tokens) VALUES (?, ?, ?, ?, ?, ?, ?, 'open', ?, ?)",
        (
            row.request_id,
            node,
            row.principal,
            row.app,
            row.session,
            row.model,
            row.op,
            row.arrived_at,
            row.reserved_tokens,
        ),
    )
    _put_tokens(database, row.request_id, {"prompt": row.prompt_tokens})
    reserve_budgets(database, row.request_id, row.charges)


def settle_row(database: sqlite3.Connection, end: Settlement) -> None:
    """Close an open row. Raises `RowError` if there is none."""
    cursor = database.execute(
        "UPDATE requests SET state = ?, finish_reason = ?, error_code = ?, counts = ?, load_s = ?,"
        " queue_s = ?, ttft_s = ?, total_s = ?, provider = ?, cache = ?"
        " WHERE request_id = ? AND state = 'open'",
        (
            end.outcome.value,
            end.finish_reason,
            end.error_code,
            end.counts.value,
            end.load_s,
            end.queue_s,
            end.ttft_s,
            end.total_s,
            end.provider,
            end.cache,
            end.request_id,
        ),
    )
    if cursor.rowcount != 1:
        raise RowError(f"request {end.request_id} has no open row to settle")
    _put_tokens(database, end.request_id, end.tokens)
    tokens = _total_tokens(database, end.request_id)
    settle_budgets(database, end.request_id, tokens=tokens, money=end.cost)


def note_progress(database: sqlite3.Connection, progress: Iterable[tuple[str, int]]) -> None:
    """Write how many completion tokens open requests have produced; ended ones are left alone."""
    database.executemany(
        "INSERT INTO tokens (request_id, kind, number)"
        " SELECT request_id, 'completion', ?2 FROM requests"
        " WHERE request_id = ?1 AND state = 'open'"
        " ON CONFLICT (request_id, kind) DO UPDATE SET number = excluded.number",
        progress,
    )


def settle_interrupted(database: sqlite3.Connection) -> int:
    """Close the rows that a killed daemon left open. Returns how many.

    Each is charged its last progress plus what one interval can produce, within its reservation.
    """
    rows = database.execute(
        "SELECT r.request_id, reserved_tokens, coalesce(p.number, 0), coalesce(c.number, 0)"
        " FROM requests AS r"
        " LEFT JOIN tokens AS p ON p.request_id = r.request_id AND p.kind = 'prompt'"
        " LEFT JOIN tokens AS c ON c.request_id = r.request_id AND c.kind = 'completion'"
        " WHERE state = 'open'"
    ).fetchall()
    for request_id, reserved, prompt, completion in rows:
        most = max(reserved - prompt, completion)
        tokens = {"completion": min(completion + MOST_TOKENS_PER_INTERVAL, most)}
        end = Settlement(
            request_id=request_id,
            outcome=Outcome.FAILED,
            error_code=Code.INTERNAL.value,
            counts=Counts.ESTIMATED,
            tokens=tokens,
        )
        settle_row(database, end)
    return len(rows)


def _total_tokens(database: sqlite3.Connection, request_id: str) -> int:
    (number,) = database.execute(
        "SELECT coalesce(sum(number), 0) FROM tokens"
        " WHERE request_id = ? AND kind IN ('prompt', 'completion')",
        (request_id,),
    ).fetchone()
    return int(number)


def _put_tokens(database: sqlite3.Connection, request_id: str, tokens: Mapping[str, int]) -> None:
    database.executemany(
        "INSERT INTO tokens (request_id, kind, number) VALUES (?, ?, ?)"
        " ON CONFLICT (request_id, kind) DO UPDATE SET number = excluded.number",
        [(request_id, kind, number) for kind, number in tokens.items()],
    )
