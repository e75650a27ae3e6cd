"""The audit as the daemon uses it: note, read, verify, prune.

Rows go the way of all writes of the ledger, through its one writer and in its group commits, so
they are in the order of the commits; a row that the disk refuses is kept and tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import Unavailable
from openclawd.ledger.audit_chain import COLUMNS, AuditChain, AuditEntry
from openclawd.ledger.audit_verify import Claim, Verdict, verify_audit
from openclawd.ledger.storage import open_reader, storage_errors
from openclawd.ledger.writer import Loss, Write

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from pathlib import Path

    from openclawd.ledger.audit_key import AuditKey, Head
    from openclawd.ledger.writer import Writer


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditQuery:
    """Which rows are wanted: of the last so many seconds, of one principal, of one action. The
    newest `limit` of them, or with `after_seq` the first `limit` behind that row."""

    limit: int
    since_s: float | None = None
    principal: str | None = None
    action: str | None = None
    after_seq: int | None = None


class AuditLog:
    """The audit of an open ledger. All methods are called on the loop."""

    def __init__(self, path: Path, key: AuditKey, *, chain: AuditChain, writer: Writer) -> None:
        self._path = path
        self._key = key
        self._chain = chain
        self._writer = writer

    @property
    def head(self) -> Head:
        """The end of what is on disk."""
        return self._chain.head

    @property
    def mismatch(self) -> str | None:
        """What was wrong with the end of the audit when it was opened; None: nothing."""
        return self._chain.mismatch

    @property
    def key_origin(self) -> str:
        """`credential` or `file`."""
        return self._key.origin

    def note(self, entry: AuditEntry) -> None:
        """Add a row. Never waits; what is waited for later in the ledger comes after it."""
        self._writer.submit(
            Write(lambda database: self._chain.append(database, entry), None, Loss.PITY)
        )

    def append(self, database: sqlite3.Connection, entry: AuditEntry) -> None:
        """Add a row inside a write of the ledger: both are on disk, or neither."""
        self._chain.append(database, entry)

    def tell_head(self) -> None:
        """Tell the journal of the head, unless it has been told."""
        self._chain.tell()

    async def read(self, query: AuditQuery, *, now: float) -> list[dict[str, Any]]:
        """Rows, oldest first, all that was noted before included; `now` is Unix time. Raises
        `Unavailable`."""
        await self._wait_written()
        return await asyncio.to_thread(read_audit, self._path, query, now=now)

    async def verify(self, given: Head | None = None) -> Verdict:
        """Verify the whole chain, and that it holds `given`. Raises `Unavailable`."""
        await self._wait_written()
        claims = [Claim(self.head, "the running daemon")]
        if given is not None:
            claims.append(Claim(given, "the given head"))
        return await asyncio.to_thread(verify_audit, self._path, self._key, claims)

    async def _wait_written(self) -> None:
        """Until what was noted is on disk. A disk that refuses it can still be read."""
        with contextlib.suppress(Unavailable):
            await self._write(lambda database: None)

    async def prune(self, before: float) -> int:
        """Cut the rows from before this Unix time. Returns how many. Raises `Unavailable`.

        In pieces, each with a checkpoint, so that no request's usage waits long.
        """
        total, last = 0, self.head.seq
        while num_rows := await self._prune_some(before, last):
            total += num_rows
        return total

    async def _prune_some(self, before: float, last: int) -> int:
        num_rows = 0

        def apply(database: sqlite3.Connection) -> None:
            nonlocal num_rows
            num_rows = self._chain.prune(database, before, last=last)

        await self._write(apply)
        return num_rows

    async def _write(self, apply: Callable[[sqlite3.Connection], None]) -> None:
        future = asyncio.get_running_loop().create_future()
        self._writer.submit(Write(apply, future, Loss.TOLD))
        await future


def read_audit(path: Path, query: AuditQuery, *, now: float) -> list[dict[str, Any]]:
    """Blocks on the disk. Raises `Unavailable`."""
    is_onward = query.after_seq is not None
    order = "" if is_onward else "DESC"
    earliest = None if query.since_s is None else round((now - query.since_s) * 1_000_000)
    wanted = (query.after_seq or 0, earliest, query.principal, query.action, query.limit)
    with contextlib.closing(open_reader(path)) as database, storage_errors(path):
        database.text_factory = lambda raw: raw.decode(errors="replace")
        # nosec: the parts are from here, never from a caller's text
        rows = database.execute(f"{_SELECT} ORDER BY seq {order} LIMIT ?5", wanted).fetchall()
    found = [_as_dict(row) for row in rows]
    return found if is_onward else found[::-1]


_SELECT: Final = f"""
    SELECT {COLUMNS} FROM audit
    WHERE seq > ?1 AND (?2 IS NULL OR at_us >= ?2) AND (?3 IS NULL OR principal = ?3)
    AND (?4 IS NULL OR action = ?4)
"""


def _as_dict(row: tuple[Any, ...]) -> dict[str, Any]:
    """A row of the result of the `audit` operation."""
    seq, at_us, principal, uid, pid, app, action, model, code, tokens, request_id, detail = row
    return {
        "seq": seq,
        "at": at_us / 1_000_000,
        "principal": principal,
        "uid": uid,
        "pid": pid,
        "app": app,
        "action": action,
        "model": model,
        "code": code,
        "tokens": tokens,
        "request_id": _request_id(request_id),
        "detail": _detail(detail),
    }


def _request_id(raw: bytes | None) -> str | None:
    """Also of a row that somebody has changed: to see it is what the audit is for."""
    if raw is None:
        return None
    return str(uuid.UUID(bytes=raw)) if len(raw) == 16 else raw.hex()


def _detail(text: str) -> Any:
    try:
        return json.loads(text) if text else {}
    except ValueError:
        return {"unreadable": text}
