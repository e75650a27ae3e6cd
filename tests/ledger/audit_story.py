"""An audit written without a daemon, and ways to change it behind the daemon's back."""

from __future__ import annotations

import contextlib
import sqlite3
import uuid
from typing import TYPE_CHECKING, Any

from openclawd.ledger.audit_chain import COLUMNS, AuditChain, AuditEntry
from openclawd.ledger.audit_key import AuditKey, Head
from openclawd.ledger.audit_verify import Claim, Verdict, verify_audit
from openclawd.ledger.storage import open_database

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

KEY = AuditKey(b"k" * 32, origin="file")
START = 1_700_000_000.0
NAMES = COLUMNS.split(", ")
"""The fields that a MAC covers."""


def entry(number: int = 1, **changes: Any) -> AuditEntry:
    values = {
        "at": START + number,
        "action": "chat",
        "principal": "user:alice",
        "uid": 1000,
        "pid": 4711,
        "app": "crm",
        "model": "smollm2",
        "code": "stop",
        "tokens": number,
        "request_id": str(uuid.UUID(int=number)),
        "detail": {"n": number},
    }
    return AuditEntry(**{**values, **changes})


@contextlib.contextmanager
def opened(path: Path, key: AuditKey = KEY) -> Iterator[tuple[sqlite3.Connection, AuditChain]]:
    """The writer's side: a database and the end of its chain."""
    database = open_database(path)
    try:
        yield database, AuditChain(database, key, lambda head: None)
    finally:
        database.close()


def write(path: Path, entries: Sequence[AuditEntry]) -> Head:
    """Add rows, a transaction each; the head afterwards."""
    with opened(path) as (database, chain):
        for each in entries:
            with chain.transaction(database):
                chain.append(database, each)
        return chain.head


def prune(path: Path, before: float) -> int:
    with opened(path) as (database, chain), chain.transaction(database):
        return chain.prune(database, before, last=chain.head.seq)


def verify(path: Path, *claims: Head) -> Verdict:
    return verify_audit(path, KEY, [Claim(head, "the journal") for head in claims])


@contextlib.contextmanager
def forger(path: Path) -> Iterator[sqlite3.Connection]:
    """Somebody who may write the file and lets no trigger or constraint stop him."""
    database = sqlite3.connect(path, isolation_level=None)
    try:
        triggers = database.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'")
        for (name,) in triggers.fetchall():
            database.execute(f"DROP TRIGGER {name}")
        database.execute("PRAGMA ignore_check_constraints = ON")
        yield database
    finally:
        database.close()
