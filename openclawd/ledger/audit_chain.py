"""The audit's table and the end of its chain, which lives on the writer's thread.

Owns the rows' form, the order they are in (that of the commits) and how they are pruned. Must not
know connections, clients, or any text of prompts and completions.

Invariants: a row is written once and never changed; the end in memory is that of what is on disk;
a row that goes leaves a checkpoint behind, a row of the chain that says how far was cut and with
which MAC what is left begins.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from openclawd.ledger.audit_key import Head
from openclawd.ledger.rows import RowError
from openclawd.ledger.storage import transaction

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Mapping

    from openclawd.ledger.audit_key import AuditKey

CHECKPOINT: Final = "checkpoint"
"""The action of the row that a prune leaves behind."""

COLUMNS: Final = (
    "seq, at_us, principal, uid, pid, app, action, model, code, tokens, request_id, detail"
)
"""What a row's MAC covers, in this order."""

MAX_DETAIL_CHARS: Final = 4096
"""Most JSON of one row: an audit says that something happened, not all that there is to say."""

HEAD_EVERY_ROWS: Final = 1000
PRUNE_ROWS: Final = 2_000
"""Rows that one transaction cuts: 15 ms, for which usage waits (measured 2026-11-29)."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """Something that somebody did or was refused. `at` is Unix time; `code` an error code, or how
    an answer ended; `detail` small plain data, never a text of a prompt or an answer."""

    at: float
    action: str
    principal: str = ""
    uid: int | None = None
    pid: int | None = None
    app: str = ""
    model: str = ""
    code: str = ""
    tokens: int = 0
    request_id: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    def values(self, seq: int) -> tuple[object, ...]:
        """As `COLUMNS`. Raises `RowError` for a detail that is too long."""
        detail = _DETAIL(dict(self.detail)) if self.detail else ""
        if len(detail) > MAX_DETAIL_CHARS:
            raise RowError(f"the detail of {self.action} has {len(detail)} characters")
        return (
            seq,
            round(self.at * 1_000_000),
            _storable(self.principal),
            self.uid,
            self.pid,
            _storable(self.app),
            _storable(self.action),
            _storable(self.model),
            _storable(self.code),
            self.tokens,
            uuid.UUID(self.request_id).bytes if self.request_id else None,
            detail,
        )


_DETAIL: Final = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode


def _storable(text: str) -> str:
    """Half characters (of file names) have no UTF-8."""
    return text if text.isascii() else text.encode(errors="replace").decode()


class AuditChain:
    """The end of the chain. Made when the ledger is opened; then everything but `head` belongs to
    the writer's thread.

    `tell_head` puts a head where the database's owner cannot take it back: into the journal.
    """

    def __init__(
        self, database: sqlite3.Connection, key: AuditKey, tell_head: Callable[[Head], object]
    ) -> None:
        self._key = key
        self._tell_head = tell_head
        self.head: Head
        self.head, self.mismatch = _found(database, key)
        """`head` is of what is on disk; it may be read from any thread. `mismatch` says what about
        the end that was found at the start is not as it was left; None: nothing."""
        self._pending = self.head
        self._told = self.head

    def append(self, database: sqlite3.Connection, entry: AuditEntry) -> None:
        """Add a row, inside `transaction`. Raises `RowError`."""
        seq = self._pending.seq + 1
        values = entry.values(seq)
        mac = self._key.mac(self._pending.mac, values)
        database.execute(_INSERT, (*values, mac))
        self._pending = Head(seq, mac, self._pending.pruned_through)

    def prune(self, database: sqlite3.Connection, before: float, *, last: int) -> int:
        """Cut rows from the beginning, up to the first that is not older than `before` (Unix time),
        none after `last` and `PRUNE_ROWS` at most. Inside `transaction`. Returns how many went."""
        first = database.execute("SELECT coalesce(min(seq), 1) FROM audit").fetchone()[0]
        through = min(_last_before(database, before), last, first + PRUNE_ROWS - 1)
        if through < first:
            return 0
        (mac,) = database.execute("SELECT mac FROM audit WHERE seq = ?", (through,)).fetchone()
        cut = {"pruned_through": through, "mac": mac.hex(), "rows": through - first + 1}
        self.append(database, AuditEntry(at=time.time(), action=CHECKPOINT, detail=cut))
        self._pending = Head(self._pending.seq, self._pending.mac, through)
        self._write_head(database)  # lets the trigger pass what is cut
        return database.execute("DELETE FROM audit WHERE seq <= ?", (through,)).rowcount

    @contextlib.contextmanager
    def transaction(self, database: sqlite3.Connection) -> Iterator[None]:
        """A transaction with which the end in memory goes forward, or back."""
        try:
            with transaction(database):
                yield
                if self._pending is not self.head:
                    self._write_head(database)
        except BaseException:
            self._pending = self.head
            raise
        self.head = self._pending
        if self.head.seq - self._told.seq >= HEAD_EVERY_ROWS:
            self.tell()

    def tell(self) -> None:
        """Tell the journal of the head, unless it has been told. From any thread: two at once tell
        it twice."""
        head = self.head
        if head != self._told:
            self._told = head
            self._tell_head(head)

    def _write_head(self, database: sqlite3.Connection) -> None:
        head = self._pending
        database.execute(_PUT_HEAD, (head.seq, head.mac, head.pruned_through, self._key.seal(head)))


_INSERT: Final = f"INSERT INTO audit ({COLUMNS}, mac) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)"
_PUT_HEAD: Final = (
    "INSERT INTO audit_head (only_row, seq, mac, pruned_through, seal) VALUES (1, ?, ?, ?, ?)"
    " ON CONFLICT (only_row) DO UPDATE SET seq = excluded.seq, mac = excluded.mac,"
    " pruned_through = excluded.pruned_through, seal = excluded.seal"
)


def read_head(database: sqlite3.Connection, key: AuditKey) -> tuple[Head | None, bool]:
    """The head in the database, if there is one, and whether it is as this key sealed it."""
    found = database.execute("SELECT seq, mac, pruned_through, seal FROM audit_head").fetchone()
    if found is None:
        return None, False
    head = Head(*found[:3])
    return head, hmac.compare_digest(key.seal(head), found[3])


def _found(database: sqlite3.Connection, key: AuditKey) -> tuple[Head, str | None]:
    """Where to go on, and what is wrong with it. What somebody cut off stays missing: the numbers
    go on behind it."""
    row = database.execute("SELECT seq, mac FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
    last = Head(*row) if row else Head(0, key.beginning)
    head, is_sealed = read_head(database, key)
    if head is None:
        return last, None if row is None else "the audit has rows, but no head"
    if not is_sealed:
        return last, "the audit's head does not fit its key: another key, or it was changed"
    if (head.seq, head.mac) == (last.seq, last.mac):
        return head, None
    story = f"the audit ends with row {last.seq}, but was left with row {head.seq} as its last"
    return (head if head.seq >= last.seq else last), story


def _last_before(database: sqlite3.Connection, before: float) -> int:
    """The last row that no newer one comes before."""
    newer = database.execute(
        "SELECT seq FROM audit WHERE at_us >= ? ORDER BY seq LIMIT 1", (round(before * 1_000_000),)
    ).fetchone()
    if newer is None:
        newer = database.execute("SELECT coalesce(max(seq), 0) + 1 FROM audit").fetchone()
    last: int = database.execute(
        "SELECT coalesce(max(seq), 0) FROM audit WHERE seq < ?", newer
    ).fetchone()[0]
    return last
