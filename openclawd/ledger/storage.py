"""The database file: how it is created, opened and brought to the current schema; its errors.

Owns file permissions, SQLite settings and the list of migrations. Knows nothing of threads.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, Final

from openclawctl.wire.errors import Unavailable
from openclawd.ledger import model_peaks, prefix_use

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

BUSY_TIMEOUT_S: Final = 5.0
"""How long another process may hold the database before a write fails. Only a backup tool or a
person with `sqlite3` ever should."""

_WAL_BYTES: Final = 4 * 1024 * 1024
"""The write-ahead log is cut back to this after a checkpoint."""

_CACHE_KIB: Final = 512
"""Of each connection. With SQLite's 2,000 the daemon grows for its first thousands of requests, by
4 MiB in the end; rows are written at the end and found by an index, which needs few pages."""

_COMPACT_USAGE: Final[Sequence[str]] = ()
_KEYS: Final[Sequence[str]] = ()
_AUDIT: Final[Sequence[str]] = ()
_BUDGETS: Final[Sequence[str]] = ()
_INSIGHTS: Final = (*model_peaks.CREATE, *prefix_use.CREATE)

MIGRATIONS: Final[Sequence[Sequence[str]]] = (
    (
        """CREATE TABLE requests (
            request_id      TEXT PRIMARY KEY,
            node            TEXT NOT NULL,
            principal       TEXT NOT NULL,
            app             TEXT,
            session         TEXT,
            model           TEXT NOT NULL,
            op              TEXT NOT NULL,
            state           TEXT NOT NULL CHECK (state IN ('open', 'done', 'cancelled', 'failed')),
            finish_reason   TEXT,
            error_code      TEXT,
            arrived_at      REAL NOT NULL,
            reserved_tokens INTEGER NOT NULL CHECK (reserved_tokens >= 0),
            load_s          REAL NOT NULL DEFAULT 0,
            queue_s         REAL NOT NULL DEFAULT 0,
            ttft_s          REAL,
            total_s         REAL NOT NULL DEFAULT 0,
            counts          TEXT NOT NULL DEFAULT 'exact',
            provider        TEXT NOT NULL DEFAULT 'local',
            cache           TEXT NOT NULL DEFAULT 'none'
        ) STRICT, WITHOUT ROWID""",
        """CREATE TABLE tokens (
            request_id TEXT NOT NULL REFERENCES requests ON DELETE CASCADE,
            kind       TEXT NOT NULL,
            number     INTEGER NOT NULL CHECK (number >= 0),
            PRIMARY KEY (request_id, kind)
        ) STRICT, WITHOUT ROWID""",
        "CREATE INDEX requests_by_time ON requests (arrived_at)",
        "CREATE INDEX requests_open ON requests (state) WHERE state = 'open'",
    ),
    (*_COMPACT_USAGE, *_KEYS, *_AUDIT, *_BUDGETS, *_INSIGHTS),
)
"""Statements that lead from each version to the next. Released ones are never changed."""


def open_database(
    path: Path, migrations: Sequence[Sequence[str]] = MIGRATIONS
) -> sqlite3.Connection:
    """A writing connection to an up-to-date database, created with mode 0600 when it is missing.

    An existing one is copied beside itself before it is migrated. Raises `Unavailable`. The
    connection may be handed to another thread.
    """
    with storage_errors(path):
        _create_private(path)
        database = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            _configure(database)
            _migrate(database, path, migrations)
        except BaseException:
            database.close()
            raise
        return database


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot write. Raises `Unavailable`."""
    with storage_errors(path):
        return sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S
        )


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Everything inside, or nothing. Durable when it ends without an exception."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # SQLite has ended it itself after some disk errors
            database.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """What the disk did, as `Unavailable`."""
    try:
        yield
    except (sqlite3.DatabaseError, OSError) as error:
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
            raise  # ours, not the disk's
        raise to_problem(error, path) from error


_HINTS: Final = {
    sqlite3.SQLITE_FULL: "free some space on that file system",
    sqlite3.SQLITE_BUSY: "another process holds it; is a backup or an sqlite3 shell open on it?",
    sqlite3.SQLITE_LOCKED: "another process holds it; is a backup or an sqlite3 shell open on it?",
    sqlite3.SQLITE_READONLY: "check the owner and mode of the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "check that the folder exists and belongs to the daemon's user",
    sqlite3.SQLITE_IOERR: "check the disk, its quota and free space, and the kernel log",
    sqlite3.SQLITE_CORRUPT: "stop the daemon and move the file away, or restore a backup of it",
    sqlite3.SQLITE_NOTADB: "stop the daemon and move the file away, or restore a backup of it",
}


def to_problem(error: sqlite3.Error | OSError, path: Path) -> Unavailable:
    """A storage error as a sentence with the file and what to do."""
    reason: object = error
    hint = "check the state directory and the disk"
    if isinstance(error, OSError):
        reason = error.strerror
    elif (code := getattr(error, "sqlite_errorcode", None)) is not None:
        hint = _HINTS.get(code & 0xFF, hint)  # the upper bits refine the primary code
    return Unavailable(f"the ledger {path} cannot be used: {reason}", hint=hint)


def _create_private(path: Path) -> None:
    """Make the file ours alone; SQLite gives its -wal and -shm files the same mode."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def _configure(database: sqlite3.Connection) -> None:
    database.execute(
        "PRAGMA auto_vacuum = INCREMENTAL"
    )  # has an effect before the first table only
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA foreign_keys = ON")
    database.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
    database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")


def _migrate(database: sqlite3.Connection, path: Path, migrations: Sequence[Sequence[str]]) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    (num_tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if version > len(migrations):
        raise Unavailable(
            f"the ledger {path} has schema {version}; this openclawd knows up to {len(migrations)}",
            hint="a newer openclawd wrote it: install that version again, or use another "
            "--state-dir",
        )
    if version == 0 and num_tables:
        raise Unavailable(
            f"{path} is a database, but not an openclawd ledger",
            hint="move it away, or use another --state-dir",
        )
    if 0 < version < len(migrations):
        _back_up(database, path.with_name(f"{path.name}.v{version}.bak"))
    for number in range(version, len(migrations)):
        with transaction(database):
            for statement in migrations[number]:
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {number + 1}")


def _back_up(database: sqlite3.Connection, target: Path) -> None:
    """A consistent copy. An unfinished one is never left under the final name."""
    unfinished = target.with_name(target.name + ".part")
    unfinished.unlink(missing_ok=True)
    _create_private(unfinished)
    copy = sqlite3.connect(unfinished)
    try:
        database.backup(copy)
    finally:
        copy.close()
    unfinished.replace(target)
