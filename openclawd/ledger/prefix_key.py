"""The key of prefix hashes: 32 random bytes in the state directory that the database does not hold.

Whoever has the database alone cannot find out whether a prompt that he guesses was ever asked.
"""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Final

from openclawd.ledger.private_file import write_private
from openclawd.ledger.storage import storage_errors

if TYPE_CHECKING:
    from pathlib import Path

KEY_BYTES: Final = 32


def read_or_create_key(path: Path) -> bytes:
    """The key in a file, which is created with mode 0600 when it is missing or not whole. Old
    hashes are worth nothing without their key, so a new one costs no more than they.

    The caller holds the state directory's lock. Blocks. Raises `Unavailable`.
    """
    with storage_errors(path):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return _create(path)
        with open(descriptor, "rb") as file:
            key = file.read(KEY_BYTES + 1)
        return key if len(key) == KEY_BYTES else _create(path)


def _create(path: Path) -> bytes:
    key = secrets.token_bytes(KEY_BYTES)
    write_private(path, key)
    return key
