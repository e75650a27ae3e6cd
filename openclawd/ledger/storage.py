"""The database file: how it is created, opened and brought to the current schema; its errors.

Owns file permissions, SQLite settings and the list of migrations. Knows nothing of threads.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import uuid
from typing import TYPE_CHECKING, Final

from openclawctl.wire.errors import Unavailable
from openclawd.ledger import model_peaks, prefix_use
from openclawd.ledger.budgets import BUDGET_TABLES

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

_COMPACT_USAGE: Final[Sequence[str]] = (
    "ALTER TABLE requests RENAME TO requests_v1",
    "ALTER TABLE tokens RENAME TO tokens_v1",
    "DROP INDEX requests_by_time",
    "DROP INDEX requests_open",
    """CREATE TABLE names (
        id   INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE
    ) STRICT""",
    """CREATE TABLE ledger_state (
        id         INTEGER PRIMARY KEY CHECK (id = 1),
        seq        INTEGER NOT NULL,
        pruned_seq INTEGER NOT NULL
    ) STRICT""",
    # What reports add up stands first: SQLite reads a row from its beginning.
    """CREATE TABLE request_rows (
        seq             INTEGER PRIMARY KEY,
        settled_seq     INTEGER,
        state           INTEGER NOT NULL CHECK (state BETWEEN 0 AND 3),
        arrived_ms      INTEGER NOT NULL,
        principal       INTEGER NOT NULL,
        model           INTEGER NOT NULL,
        op              INTEGER NOT NULL,
        app             INTEGER,
        key             INTEGER,
        tier            INTEGER,
        session         INTEGER,
        prompt          INTEGER NOT NULL CHECK (prompt >= 0),
        cached          INTEGER CHECK (cached >= 0),
        completion      INTEGER CHECK (completion >= 0),
        currency        INTEGER,
        cost            INTEGER CHECK (cost >= 0),
        total_us        INTEGER NOT NULL DEFAULT 0,
        ttft_us         INTEGER,
        queue_us        INTEGER NOT NULL DEFAULT 0,
        load_us         INTEGER NOT NULL DEFAULT 0,
        request_id      ANY NOT NULL UNIQUE,
        reserved_ms     INTEGER NOT NULL,
        reserved_tokens INTEGER NOT NULL CHECK (reserved_tokens >= 0),
        reserved_cost   INTEGER NOT NULL DEFAULT 0 CHECK (reserved_cost >= 0),
        prompt_cost     INTEGER NOT NULL DEFAULT 0 CHECK (prompt_cost >= 0),
        node            INTEGER,
        adapter         INTEGER,
        asked_model     INTEGER,
        finish_reason   INTEGER,
        error_code      INTEGER,
        limit_hit       INTEGER,
        truncation      INTEGER,
        dropped         INTEGER NOT NULL DEFAULT 0,
        sequences       INTEGER NOT NULL DEFAULT 1,
        restarts        INTEGER NOT NULL DEFAULT 0,
        is_estimated    INTEGER NOT NULL DEFAULT 0,
        provider        INTEGER,
        cache           INTEGER,
        CHECK ((state = 0) = (settled_seq IS NULL))
    ) STRICT""",
    """CREATE TABLE token_counts (
        seq    INTEGER NOT NULL REFERENCES request_rows ON DELETE CASCADE,
        kind   INTEGER NOT NULL,
        number INTEGER NOT NULL CHECK (number >= 0),
        PRIMARY KEY (seq, kind)
    ) STRICT, WITHOUT ROWID""",
    """INSERT INTO names (name)
        SELECT node FROM requests_v1 UNION SELECT principal FROM requests_v1
        UNION SELECT app FROM requests_v1 WHERE app <> ''
        UNION SELECT session FROM requests_v1 WHERE session <> ''
        UNION SELECT model FROM requests_v1 UNION SELECT op FROM requests_v1
        UNION SELECT finish_reason FROM requests_v1 WHERE finish_reason <> ''
        UNION SELECT error_code FROM requests_v1 WHERE error_code <> ''
        UNION SELECT provider FROM requests_v1 WHERE provider <> 'local'
        UNION SELECT cache FROM requests_v1 WHERE cache <> 'none'
        UNION SELECT kind FROM tokens_v1 WHERE kind NOT IN ('prompt', 'cached', 'completion')""",
    # Ended requests one after the other, as it is not known which overlapped; open ones come last.
    """INSERT INTO request_rows (seq, settled_seq, state, arrived_ms, principal, model, op, app,
            session, prompt, cached, completion, total_us, ttft_us, queue_us, load_us, request_id,
            reserved_ms, reserved_tokens, node, finish_reason, error_code, is_estimated, provider,
            cache)
        SELECT iif(state = 'open', number + num_ended, 2 * number - 1),
            iif(state = 'open', NULL, 2 * number),
            CASE state WHEN 'open' THEN 0 WHEN 'done' THEN 1 WHEN 'cancelled' THEN 2 ELSE 3 END,
            CAST(round(arrived_at * 1000) AS INTEGER),
            (SELECT id FROM names WHERE name = principal),
            (SELECT id FROM names WHERE name = model),
            (SELECT id FROM names WHERE name = op),
            (SELECT id FROM names WHERE name = app),
            (SELECT id FROM names WHERE name = session),
            coalesce((SELECT t.number FROM tokens_v1 AS t
                WHERE t.request_id = r.request_id AND kind = 'prompt'), 0),
            (SELECT t.number FROM tokens_v1 AS t
                WHERE t.request_id = r.request_id AND kind = 'cached'),
            (SELECT t.number FROM tokens_v1 AS t
                WHERE t.request_id = r.request_id AND kind = 'completion'),
            CAST(round(total_s * 1000000) AS INTEGER), CAST(round(ttft_s * 1000000) AS INTEGER),
            CAST(round(queue_s * 1000000) AS INTEGER), CAST(round(load_s * 1000000) AS INTEGER),
            request_key(request_id), CAST(round(arrived_at * 1000) AS INTEGER), reserved_tokens,
            (SELECT id FROM names WHERE name = node),
            (SELECT id FROM names WHERE name = finish_reason),
            (SELECT id FROM names WHERE name = error_code),
            counts <> 'exact',
            (SELECT id FROM names WHERE name = provider), (SELECT id FROM names WHERE name = cache)
        FROM (SELECT *,
                row_number() OVER (ORDER BY state = 'open', arrived_at, request_id) AS number,
                count(*) FILTER (WHERE state <> 'open') OVER () AS num_ended
            FROM requests_v1) AS r""",
    """INSERT INTO token_counts (seq, kind, number)
        SELECT seq, (SELECT id FROM names WHERE name = kind), number FROM tokens_v1 AS t
        JOIN request_rows AS r ON r.request_id = request_key(t.request_id)
        WHERE kind NOT IN ('prompt', 'cached', 'completion')""",
    """INSERT INTO ledger_state
        SELECT 1, max(coalesce(max(seq), 0), coalesce(max(settled_seq), 0)), 0
        FROM request_rows""",
    "DROP TABLE tokens_v1",
    "DROP TABLE requests_v1",
    "CREATE INDEX request_rows_by_time ON request_rows (arrived_ms)",
    """CREATE UNIQUE INDEX request_rows_settled ON request_rows (settled_seq)
        WHERE settled_seq IS NOT NULL""",
    "CREATE INDEX request_rows_open ON request_rows (seq) WHERE settled_seq IS NULL",
    """CREATE VIEW requests AS SELECT
        CASE typeof(request_id) WHEN 'blob' THEN lower(
            substr(hex(request_id), 1, 8) || '-' || substr(hex(request_id), 9, 4) || '-' ||
            substr(hex(request_id), 13, 4) || '-' || substr(hex(request_id), 17, 4) || '-' ||
            substr(hex(request_id), 21)) ELSE request_id END AS request_id,
        seq, settled_seq,
        CASE state WHEN 0 THEN 'open' WHEN 1 THEN 'done' WHEN 2 THEN 'cancelled' ELSE 'failed' END
            AS state,
        arrived_ms / 1000.0 AS arrived_at, reserved_ms / 1000.0 AS reserved_at,
        (SELECT name FROM names WHERE id = node) AS node,
        (SELECT name FROM names WHERE id = principal) AS principal,
        (SELECT name FROM names WHERE id = key) AS key,
        (SELECT name FROM names WHERE id = tier) AS tier,
        (SELECT name FROM names WHERE id = app) AS app,
        (SELECT name FROM names WHERE id = session) AS session,
        (SELECT name FROM names WHERE id = model) AS model,
        (SELECT name FROM names WHERE id = asked_model) AS asked_model,
        (SELECT name FROM names WHERE id = adapter) AS adapter,
        (SELECT name FROM names WHERE id = op) AS op,
        prompt AS prompt_tokens, cached AS cached_tokens, completion AS completion_tokens,
        iif(is_estimated, 'estimated', 'exact') AS counts,
        reserved_tokens, reserved_cost, prompt_cost, cost,
        (SELECT name FROM names WHERE id = currency) AS currency,
        load_us / 1000000.0 AS load_s, queue_us / 1000000.0 AS queue_s,
        ttft_us / 1000000.0 AS ttft_s, total_us / 1000000.0 AS total_s,
        iif(completion > 1 AND total_us > ttft_us,
            round((completion - 1) * 1000000.0 / (total_us - ttft_us), 1), NULL) AS tokens_per_s,
        (SELECT name FROM names WHERE id = finish_reason) AS finish_reason,
        (SELECT name FROM names WHERE id = error_code) AS error_code,
        (SELECT name FROM names WHERE id = limit_hit) AS limit_hit,
        (SELECT name FROM names WHERE id = truncation) AS truncation,
        dropped AS dropped_tokens, restarts AS worker_restarts,
        coalesce((SELECT name FROM names WHERE id = provider), 'local') AS provider,
        coalesce((SELECT name FROM names WHERE id = cache), 'none') AS cache
        FROM request_rows""",
    """CREATE VIEW tokens AS
        SELECT request_id, 'prompt' AS kind, prompt_tokens AS number FROM requests
        UNION ALL SELECT request_id, 'cached', cached_tokens FROM requests
            WHERE cached_tokens IS NOT NULL
        UNION ALL SELECT request_id, 'completion', completion_tokens FROM requests
            WHERE completion_tokens IS NOT NULL
        UNION ALL SELECT request_id, (SELECT name FROM names WHERE id = kind), number
            FROM token_counts JOIN requests USING (seq)""",
)
"""One row a request: 260 bytes with all indexes and a session name of its own, measured with a
million (docs/performance.md). Every name is a number of the dictionary `names`, times are whole
milliseconds and microseconds. `seq` and `settled_seq` number reservations and settlements together,
in the order of their commits. The views `requests` and `tokens` show it to people; reports read the
table."""

_KEYS: Final[Sequence[str]] = (
    """CREATE TABLE keys (
        name         TEXT PRIMARY KEY,
        role         TEXT NOT NULL,
        tier         TEXT NOT NULL,
        models       TEXT NOT NULL,
        created_at   REAL NOT NULL,
        created_by   TEXT NOT NULL,
        expires_at   REAL,
        revoked_at   REAL,
        last_used_at REAL
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE key_secrets (
        prefix     TEXT PRIMARY KEY,
        name       TEXT NOT NULL REFERENCES keys,
        digest     BLOB NOT NULL CHECK (length(digest) = 32),
        created_at REAL NOT NULL,
        ends_at    REAL
    ) STRICT, WITHOUT ROWID""",
)
"""API keys, and the SHA-256 of their secrets: two of a key while a rotation overlaps."""
_AUDIT: Final[Sequence[str]] = (
    """CREATE TABLE audit (
        seq        INTEGER PRIMARY KEY,
        at_us      INTEGER NOT NULL,
        principal  TEXT NOT NULL,
        uid        INTEGER,
        pid        INTEGER,
        app        TEXT NOT NULL,
        action     TEXT NOT NULL,
        model      TEXT NOT NULL,
        code       TEXT NOT NULL,
        tokens     INTEGER NOT NULL CHECK (tokens >= 0),
        request_id BLOB,
        detail     TEXT NOT NULL,
        mac        BLOB NOT NULL
    ) STRICT""",
    """CREATE TABLE audit_head (
        only_row       INTEGER PRIMARY KEY CHECK (only_row = 1),
        seq            INTEGER NOT NULL,
        mac            BLOB NOT NULL,
        pruned_through INTEGER NOT NULL,
        seal           BLOB NOT NULL
    ) STRICT""",
    # Against mistakes. Whoever may write the file can drop a trigger; what finds that is the chain.
    """CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
        BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END""",
    """CREATE TRIGGER audit_is_not_replaced BEFORE INSERT ON audit
        WHEN EXISTS (SELECT 1 FROM audit WHERE seq = NEW.seq)
        BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END""",
    """CREATE TRIGGER audit_is_not_cut BEFORE DELETE ON audit
        WHEN OLD.seq > coalesce((SELECT pruned_through FROM audit_head), 0)
        BEGIN SELECT RAISE(ABORT, 'the audit is append-only; prune it'); END""",
)
_BUDGETS: Final[Sequence[str]] = BUDGET_TABLES
_INSIGHTS: Final[Sequence[str]] = (*model_peaks.CREATE, *prefix_use.CREATE)

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
        create_private(path)
        database = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            _configure(database)
            database.create_function("request_key", 1, request_key, deterministic=True)
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


def request_key(request_id: str) -> bytes | str:
    """A request id as rows hold it: a UUID's 16 bytes; any other text as it is."""
    try:
        parsed = uuid.UUID(request_id)
    except ValueError:
        return request_id
    return parsed.bytes if str(parsed) == request_id else request_id


def request_id_of(key: bytes | str) -> str:
    """The inverse of `request_key`."""
    return str(uuid.UUID(bytes=key)) if isinstance(key, bytes) else key


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


def identity_of(path: Path) -> tuple[int, int]:
    """What tells the file from others of that name. Raises `OSError`."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def check_identity(path: Path, expected: tuple[int, int]) -> None:
    """See that what was opened has its name still. SQLite goes on with a file that was deleted or
    replaced, and all that it writes is gone with the process. Raises `Unavailable`."""
    found = None
    with contextlib.suppress(FileNotFoundError):
        found = identity_of(path)
    if found != expected:
        what = "was deleted" if found is None else "was replaced by another file"
        raise Unavailable(
            f"the ledger {path} {what} while the daemon used it",
            hint="move the file back, or restart the daemon: it starts with what is there, and what"
            " was charged since then is lost",
        )


def create_private(path: Path) -> None:
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
    create_private(unfinished)
    copy = sqlite3.connect(unfinished)
    try:
        database.backup(copy)
    finally:
        copy.close()
    unfinished.replace(target)
