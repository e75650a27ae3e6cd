"""API keys on disk: the SQL that writes and reads them. Never a secret, only its SHA-256."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from openclawd.admission.keys import ApiKey, KeySecret
from openclawd.ledger.rows import RowError
from openclawd.ledger.storage import open_reader, storage_errors

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path


def read_keys(path: Path) -> list[ApiKey]:
    """Every key. Blocks on the disk. Raises `Unavailable`."""
    with contextlib.closing(open_reader(path)) as database, storage_errors(path):
        secrets: dict[str, list[KeySecret]] = {}
        for name, *values in database.execute(
            "SELECT name, prefix, digest, created_at, ends_at FROM key_secrets"
            " ORDER BY ends_at IS NOT NULL, created_at DESC"
        ):
            secrets.setdefault(name, []).append(KeySecret(*values))
        rows = database.execute(
            "SELECT name, role, tier, models, created_at, created_by, expires_at, revoked_at,"
            " last_used_at FROM keys"
        )
        return [
            ApiKey(name, tuple(secrets[name]), role, tier, tuple(json.loads(models)), *others)
            for name, role, tier, models, *others in rows
        ]


def insert_key(database: sqlite3.Connection, key: ApiKey) -> None:
    """Add a key. Raises `sqlite3.IntegrityError` if its name is taken."""
    database.execute(
        "INSERT INTO keys (name, role, tier, models, created_at, created_by, expires_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            key.name,
            key.role,
            key.tier,
            json.dumps(key.models),
            key.created_at,
            key.created_by,
            key.expires_at,
        ),
    )
    _put_secrets(database, key)


def update_key(database: sqlite3.Connection, key: ApiKey) -> None:
    """Write what may change: its secrets, its end, whether it is revoked. Raises `RowError` if
    there is no such key."""
    cursor = database.execute(
        "UPDATE keys SET expires_at = ?, revoked_at = ? WHERE name = ?",
        (key.expires_at, key.revoked_at, key.name),
    )
    if cursor.rowcount != 1:
        raise RowError(f"there is no key {key.name!r} to change")
    database.execute("DELETE FROM key_secrets WHERE name = ?", (key.name,))
    _put_secrets(database, key)


def note_key_used(database: sqlite3.Connection, name: str, used_at: float) -> None:
    """Write when a key was last used."""
    database.execute("UPDATE keys SET last_used_at = ? WHERE name = ?", (used_at, name))


def _put_secrets(database: sqlite3.Connection, key: ApiKey) -> None:
    database.executemany(
        "INSERT INTO key_secrets (prefix, name, digest, created_at, ends_at)"
        " VALUES (?, ?, ?, ?, ?)",
        [
            (secret.prefix, key.name, secret.digest, secret.created_at, secret.ends_at)
            for secret in key.secrets
        ],
    )
