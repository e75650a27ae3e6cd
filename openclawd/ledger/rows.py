"""What is written about a request, and the SQL that writes it.

Owns `request_rows`, `token_counts`, `names` and `ledger_state`. Money is in whole micro-units of a
currency. Every reservation and every settlement takes the next number of one series (`next_seq`)
inside its transaction, so the numbers have no holes and follow the order of the commits.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from openclawctl.wire.errors import Code
from openclawd.ledger.budgets import reserve_budgets, settle_budgets
from openclawd.ledger.storage import request_id_of, request_key

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
    """A request that is about to be queued. Wall times are Unix seconds.

    `reserved_tokens` is its prompt and the most it may produce, `reserved_cost` the price of that
    and `prompt_cost` the part of it that is the prompt's. `reserved_at` is when the budgets took it
    (default: `arrived_at`). `num_sequences` are computed at once. `model` computes it;
    `asked_model` is the one asked for, if that is another. `truncation` is the policy that cut the
    prompt and `dropped_tokens` how much it cut; `limit_hit` names the rule that made it less than
    what was asked. `charges` are the counters of its budgets.
    """

    request_id: str
    principal: str
    model: str
    op: str
    arrived_at: float
    prompt_tokens: int
    reserved_tokens: int
    app: str | None = None
    session: str | None = None
    reserved_at: float | None = None
    key: str | None = None
    tier: str | None = None
    adapter: str | None = None
    asked_model: str | None = None
    reserved_cost: int = 0
    prompt_cost: int = 0
    currency: str | None = None
    truncation: str | None = None
    dropped_tokens: int = 0
    num_sequences: int = 1
    limit_hit: str | None = None
    charges: Sequence[Charge] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """How a request ended. `tokens` are counts by kind: `prompt`, `cached`, `completion`, and any
    others. `limit_hit` None leaves what the reservation said."""

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
    limit_hit: str | None = None
    worker_restarts: int = 0


class RowError(Exception):
    """A write that does not fit what the ledger holds: a bug of the caller, not of the disk."""


_OWN_COLUMNS: Final = ("prompt", "cached", "completion")
_STATES: Final = {Outcome.DONE: 1, Outcome.CANCELLED: 2, Outcome.FAILED: 3}


def insert_reservation(database: sqlite3.Connection, node: str, row: Reservation) -> None:
    """Add an open row. Raises `sqlite3.IntegrityError` if the request has one."""
    named = (
        row.principal, row.model, row.op, row.app, row.key, row.tier, row.session, row.currency,
        node, row.adapter, row.asked_model, row.truncation, row.limit_hit,
    )  # fmt: skip
    reserved_at = row.arrived_at if row.reserved_at is None else row.reserved_at
    database.execute(
        "INSERT INTO request_rows (seq, state, request_id, arrived_ms, reserved_ms, prompt,"
        " reserved_tokens, reserved_cost, prompt_cost, dropped, sequences, principal, model, op,"
        " app, key, tier, session, currency, node, adapter, asked_model, truncation, limit_hit)"
        " VALUES (?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            next_seq(database),
            request_key(row.request_id),
            round(row.arrived_at * 1000),
            round(reserved_at * 1000),
            row.prompt_tokens,
            row.reserved_tokens,
            row.reserved_cost,
            row.prompt_cost,
            row.dropped_tokens,
            row.num_sequences,
            *(name_id(database, name) for name in named),
        ),
    )
    reserve_budgets(database, request_key(row.request_id), row.charges)


def settle_row(database: sqlite3.Connection, end: Settlement) -> None:
    """Close an open row. Raises `RowError` if there is none."""
    provider = None if end.provider == "local" else end.provider
    cache = None if end.cache == "none" else end.cache
    cursor = database.execute(
        "UPDATE request_rows SET settled_seq = ?, state = ?, prompt = coalesce(?, prompt),"
        " cached = coalesce(?, cached), completion = coalesce(?, completion), cost = ?,"
        " is_estimated = ?, load_us = ?, queue_us = ?, ttft_us = ?, total_us = ?, restarts = ?,"
        " finish_reason = ?, error_code = ?, provider = ?, cache = ?,"
        " limit_hit = coalesce(?, limit_hit) WHERE request_id = ? AND state = 0 RETURNING seq,"
        " prompt + coalesce(completion, 0)",
        (
            next_seq(database),
            _STATES[end.outcome],
            *(end.tokens.get(kind) for kind in _OWN_COLUMNS),
            end.cost,
            end.counts is Counts.ESTIMATED,
            *map(_microseconds, (end.load_s, end.queue_s, end.ttft_s, end.total_s)),
            end.worker_restarts,
            *(
                name_id(database, name)
                for name in (end.finish_reason, end.error_code, provider, cache, end.limit_hit)
            ),
            request_key(end.request_id),
        ),
    )
    found = cursor.fetchone()
    if found is None:
        raise RowError(f"request {end.request_id} has no open row to settle")
    seq, num_tokens = found
    _put_other_tokens(database, seq, end.tokens)
    key = request_key(end.request_id)
    settle_budgets(database, key, tokens=num_tokens, money=end.cost)


def record_row(database: sqlite3.Connection, node: str, row: Reservation, end: Settlement) -> None:
    """Add a row that is closed at once, or close the one that the request has after all.

    Nothing was held for it while it was not written down: what it reserved is what it used.
    """
    key = (request_key(row.request_id),)
    if not database.execute("SELECT 1 FROM request_rows WHERE request_id = ?", key).fetchone():
        used = end.tokens.get("prompt", row.prompt_tokens) + end.tokens.get("completion", 0)
        row = replace(row, reserved_tokens=used, reserved_cost=end.cost, prompt_cost=0)
        insert_reservation(database, node, row)
    settle_row(database, end)


def note_progress(database: sqlite3.Connection, progress: Iterable[tuple[str, int]]) -> None:
    """Write how many completion tokens open requests have produced; ended ones are left alone."""
    database.executemany(
        "UPDATE request_rows SET completion = ? WHERE request_id = ? AND state = 0",
        [(completion, request_key(request_id)) for request_id, completion in progress],
    )


def settle_interrupted(database: sqlite3.Connection) -> int:
    """Close the rows that a killed daemon left open. Returns how many.

    Each is charged its last progress plus what its sequences can produce in one interval, within
    its reservation.
    """
    rows = database.execute(
        "SELECT request_id, reserved_tokens, prompt, coalesce(completion, 0), reserved_cost,"
        " prompt_cost, sequences FROM request_rows WHERE settled_seq IS NULL ORDER BY seq"
    ).fetchall()
    for key, reserved, prompt, completion, reserved_cost, prompt_cost, sequences in rows:
        most = max(reserved - prompt, completion)
        number = min(completion + sequences * MOST_TOKENS_PER_INTERVAL, most)
        end = Settlement(
            request_id=request_id_of(key),
            outcome=Outcome.FAILED,
            error_code=Code.INTERNAL.value,
            counts=Counts.ESTIMATED,
            tokens={"completion": number},
            cost=share_of_cost(reserved_cost, prompt_cost, tokens=number, of_tokens=most),
        )
        settle_row(database, end)
    return len(rows)


def share_of_cost(reserved_cost: int, prompt_cost: int, *, tokens: int, of_tokens: int) -> int:
    """The cost of a request that got no further than `tokens` of the completion that was reserved.

    Prices of tokens are linear, so this is what they would have come to, rounded up; of prices by
    time it is the same share. The prices themselves may have changed since.
    """
    if of_tokens <= 0:
        return reserved_cost
    return prompt_cost - (prompt_cost - reserved_cost) * tokens // of_tokens


def next_seq(database: sqlite3.Connection) -> int:
    """The next number of the series that reservations and settlements share."""
    (seq,) = database.execute(
        "UPDATE ledger_state SET seq = seq + 1 WHERE id = 1 RETURNING seq"
    ).fetchone()
    return int(seq)


def name_id(database: sqlite3.Connection, name: str | None) -> int | None:
    """The number of a name, which it is given at its first use; None for no name.

    Not remembered between calls: a transaction that is rolled back takes its new names with it.
    """
    if not name:
        return None
    found = database.execute("SELECT id FROM names WHERE name = ?", (name,)).fetchone()
    if found is None:
        return database.execute("INSERT INTO names (name) VALUES (?)", (name,)).lastrowid
    return int(found[0])


def _put_other_tokens(database: sqlite3.Connection, seq: int, tokens: Mapping[str, int]) -> None:
    for kind, number in tokens.items():
        if kind not in _OWN_COLUMNS:
            database.execute(
                "INSERT INTO token_counts (seq, kind, number) VALUES (?, ?, ?)",
                (seq, name_id(database, kind), number),
            )


def _microseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1_000_000)
