"""Checking, pruning and copying the ledger while the daemon runs.

Owns what a sound ledger looks like, and how rows are deleted and space is given back in steps that
are short enough to stand between two commits. Reading is done through connections of its own, on
whatever thread calls; the functions that take a connection run on the writer's.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from openclawd.ledger.budgets import orphaned_reservations
from openclawd.ledger.storage import (
    BUSY_TIMEOUT_S,
    create_private,
    open_reader,
    request_id_of,
    storage_errors,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PRUNE_ROWS: Final = 1000
"""Rows deleted in one transaction: short on the writer's thread, and not measured on its own."""

VACUUM_PAGES: Final = 256
"""Pages (of 4 KiB) given back in one transaction."""

_MAX_FINDINGS: Final = 20
"""Of each kind, so that a broken file does not make a report of its own size."""

_NAME_COLUMNS: Final = (
    "node", "principal", "app", "key", "tier", "session", "model", "asked_model", "op", "adapter",
    "currency", "finish_reason", "error_code", "limit_hit", "truncation", "provider", "cache",
)  # fmt: skip


# ---- checking ----


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What is wrong, as sentences; none for a sound ledger. `open_ids` are the requests that have
    not ended by the file."""

    findings: list[str]
    num_rows: int
    seq: int
    open_ids: list[str]


def check_ledger(path: Path) -> CheckReport:
    """Everything that the file alone can tell. Blocks for seconds on a large one. Raises
    `Unavailable`."""
    with contextlib.closing(open_reader(path)) as database, storage_errors(path):
        database.execute("BEGIN")  # one state of the file for all questions
        findings = _integrity(database) + _foreign_keys(database)
        if not findings:  # on a damaged file the rest would only repeat it
            findings = [*_numbering(database), *_unknown_names(database), *_odd_rows(database)]
            findings += _orphans(database)
        (num_rows,) = database.execute("SELECT count(*) FROM request_rows").fetchone()
        (seq,) = database.execute("SELECT seq FROM ledger_state").fetchone()
        return CheckReport(findings, num_rows, seq, _open_ids(database))


def _integrity(database: sqlite3.Connection) -> list[str]:
    rows = database.execute(f"PRAGMA integrity_check({_MAX_FINDINGS})").fetchall()
    return [f"SQLite says: {text}" for (text,) in rows if text != "ok"]


def _foreign_keys(database: sqlite3.Connection) -> list[str]:
    rows = database.execute("PRAGMA foreign_key_check").fetchmany(_MAX_FINDINGS)
    return [f"row {row[1]} of {row[0]} refers to a row of {row[2]} that is gone" for row in rows]


def _numbering(database: sqlite3.Connection) -> Iterable[str]:
    """Of the numbers after the last pruned one, each belongs to one reservation or settlement."""
    seq, pruned = database.execute("SELECT seq, pruned_seq FROM ledger_state").fetchone()
    count, distinct, most = database.execute(
        "SELECT count(*), count(DISTINCT n), coalesce(max(n), 0) FROM"
        " (SELECT seq AS n FROM request_rows WHERE seq > ?1"
        " UNION ALL SELECT settled_seq FROM request_rows WHERE settled_seq > ?1)",
        (pruned,),
    ).fetchone()
    if most > seq:
        yield f"a row has number {most}, but only {seq} numbers were given out"
    if distinct < count:
        yield f"{count - distinct} numbers stand at two reservations or settlements"
    if distinct < seq - pruned:
        yield f"{seq - pruned - distinct} of the numbers after {pruned} are missing: rows were lost"


def _unknown_names(database: sqlite3.Connection) -> Iterable[str]:
    for column in _NAME_COLUMNS:
        (number,) = database.execute(
            f"SELECT count(*) FROM request_rows WHERE {column} NOT IN (SELECT id FROM names)"
        ).fetchone()
        if number:
            yield f"{number} rows have a {column} that is not in the table of names"


_ODD: Final = {
    "ended before it was reserved": "settled_seq <= seq",
    "ended without a cost": "state <> 0 AND cost IS NULL AND currency IS NOT NULL",
    "has more cached than prompt tokens": "cached > prompt",
    "used more tokens than were reserved": "state <> 0 AND prompt + completion > reserved_tokens",
}


def _odd_rows(database: sqlite3.Connection) -> Iterable[str]:
    for what, condition in _ODD.items():
        rows = database.execute(f"SELECT request_id FROM request_rows WHERE {condition}").fetchmany(
            _MAX_FINDINGS
        )
        for (key,) in rows:
            yield f"request {request_id_of(key)} {what}"


def _orphans(database: sqlite3.Connection) -> Iterable[str]:
    if number := orphaned_reservations(database):
        yield f"{number} counters of budgets are held by requests that have ended"


def open_ids(path: Path) -> set[str]:
    """Requests that have not ended by the file. Raises `Unavailable`."""
    with contextlib.closing(open_reader(path)) as database, storage_errors(path):
        return set(_open_ids(database))


def _open_ids(database: sqlite3.Connection) -> list[str]:
    rows = database.execute("SELECT request_id FROM request_rows WHERE settled_seq IS NULL")
    return [request_id_of(key) for (key,) in rows]


# ---- pruning, on the writer's thread ----


def prune_rows(database: sqlite3.Connection, before: float) -> int:
    """Delete some ended requests that arrived before `before` (Unix time), at most `PRUNE_ROWS`.
    Returns how many."""
    rows = database.execute(
        "SELECT seq, settled_seq FROM request_rows WHERE arrived_ms < ? AND state <> 0 LIMIT ?",
        (round(before * 1000), PRUNE_ROWS),
    ).fetchall()
    if not rows:
        return 0
    database.executemany("DELETE FROM request_rows WHERE seq = ?", [row[:1] for row in rows])
    database.execute(
        "UPDATE ledger_state SET pruned_seq = max(pruned_seq, ?)", (max(row[1] for row in rows),)
    )
    return len(rows)


def drop_names(database: sqlite3.Connection, numbers: Iterable[int], as_of_seq: int) -> None:
    """Delete names that no row used when `seq` was `as_of_seq` (`unused_names`), but for those that
    a later row took up again."""
    used = _token_kinds(database)
    recent = f"seq > {as_of_seq:d} OR settled_seq > {as_of_seq:d} OR settled_seq IS NULL"
    for row in database.execute(
        f"SELECT {', '.join(_NAME_COLUMNS)} FROM request_rows WHERE {recent}"
    ):
        used.update(number for number in row if number is not None)
    gone = [(number,) for number in numbers if number not in used]
    database.executemany("DELETE FROM names WHERE id = ?", gone)


def vacuum_some(database: sqlite3.Connection) -> int:
    """Give some free pages back to the file system. Returns how many are left."""
    for _ in range(min(VACUUM_PAGES, _free_pages(database))):
        # Of more than one page Python's sqlite3 frees one: it takes the first step for the end.
        database.execute("PRAGMA incremental_vacuum(1)").fetchall()
    return _free_pages(database)


def _free_pages(database: sqlite3.Connection) -> int:
    (number,) = database.execute("PRAGMA freelist_count").fetchone()
    return int(number)


# ---- beside the writer ----


def unused_names(path: Path) -> tuple[list[int], int]:
    """Names that no row uses, and the number up to which that was looked at. Blocks: it reads every
    row. Raises `Unavailable`."""
    with contextlib.closing(open_reader(path)) as database, storage_errors(path):
        database.execute("BEGIN")
        (seq,) = database.execute("SELECT seq FROM ledger_state").fetchone()
        used = _token_kinds(database)
        for column in _NAME_COLUMNS:
            found = database.execute(f"SELECT DISTINCT {column} FROM request_rows")
            used.update(number for (number,) in found)
        numbers = [number for (number,) in database.execute("SELECT id FROM names")]
        return [number for number in numbers if number not in used], seq


def _token_kinds(database: sqlite3.Connection) -> set[int]:
    return {kind for (kind,) in database.execute("SELECT DISTINCT kind FROM token_counts")}


def checkpoint(path: Path) -> None:
    """Move what was committed into the file itself, which so becomes shorter. Waits for nobody:
    what readers still need stays for the next time. Blocks. Raises `Unavailable`."""
    with (
        storage_errors(path),
        contextlib.closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)) as database,
    ):
        database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def back_up(path: Path, folder: Path, *, now: float) -> Path:
    """A consistent copy as one file in `folder`, named after the time. An unfinished one is never
    left under a final name. Blocks. Raises `Unavailable`."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    with storage_errors(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        unfinished = folder / f"{path.stem}-{stamp}.part"
        target = _free_name(folder, f"{path.stem}-{stamp}")
        unfinished.unlink(missing_ok=True)
        try:
            create_private(unfinished)
            _copy(path, unfinished)
            _sync(unfinished)
            unfinished.rename(target)
            _sync(folder)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    return target


def _free_name(folder: Path, stem: str) -> Path:
    number, target = 1, folder / f"{stem}.sqlite3"
    while target.exists():
        number += 1
        target = folder / f"{stem}-{number}.sqlite3"
    return target


def _copy(path: Path, target: Path) -> None:
    """All pages in one step, of one state of the file: writers go on beside it (WAL), where a copy
    in several steps would begin again with each commit."""
    with (
        contextlib.closing(open_reader(path)) as source,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, which can be carried away


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
