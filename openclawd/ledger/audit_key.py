"""The key of the audit's chain: where it comes from, and what is computed with it.

Owns the canonical encoding of a row. The database never holds the key: whoever changes it there
cannot compute the MACs that would hide it.

Invariants: two different rows never have the same encoding; what was computed for a row is never
taken for what was computed for a head (each has a key of its own, derived from the one secret).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from openclawctl.wire.errors import Unavailable
from openclawd.ledger.private_file import write_private

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CREDENTIAL: Final = "audit-key"
"""The name of the systemd credential (`LoadCredential=audit-key:…`, systemd.exec(5))."""

KEY_FILE: Final = "audit.key"
"""In the state directory, when there is no such credential."""

MIN_KEY_BYTES: Final = 32
"""As long as the hash's output (RFC 2104, section 3)."""

_MOST_KEY_BYTES: Final = 4096
"""More than this is no key but the wrong file."""


@dataclass(frozen=True, slots=True)
class Head:
    """An end of the chain: the last row's number and MAC. Rows up to `pruned_through` are gone by
    `prune`."""

    seq: int
    mac: bytes
    pruned_through: int = 0

    def __str__(self) -> str:
        """`SEQ:MAC`, as it stands in the journal and as `audit verify --head` takes it."""
        return f"{self.seq}:{self.mac.hex()}"


class AuditKey:
    """Computes MACs (HMAC-SHA256, RFC 2104). `origin` is `credential` or `file`."""

    def __init__(self, secret: bytes, *, origin: str) -> None:
        self.origin = origin
        self._rows = _hmac(secret, b"openclawd audit: rows")
        self._heads = _hmac(secret, b"openclawd audit: heads")
        self.beginning = _hmac(self._rows, b"")
        """What stands in for the MAC before the first row."""

    def mac(self, previous: bytes, values: Sequence[object]) -> bytes:
        """A row's MAC. It covers the previous row's, and so every row before."""
        return _hmac(self._rows, previous + _ENCODE(values).encode())

    def seal(self, head: Head) -> bytes:
        """The MAC of a head."""
        return _hmac(self._heads, _ENCODE([head.seq, head.mac, head.pruned_through]).encode())


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, hashlib.sha256().name)


def _binary(value: object) -> dict[str, str]:
    """A map, so that bytes never look like a text with the same digits."""
    assert isinstance(value, bytes)
    return {"hex": value.hex()}


_ENCODE: Final = json.JSONEncoder(separators=(",", ":"), default=_binary).encode
"""JSON without blanks, everything but ASCII as `\\uXXXX`, bytes as `{"hex":"…"}`."""


def load_audit_key(environ: Mapping[str, str], state_dir: Path) -> AuditKey:
    """The key of this service, made now if there has never been one.

    Blocks on the disk. Raises `Unavailable` with what is wrong with the key.
    """
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if folder and (credential := Path(folder) / CREDENTIAL).exists():
        return AuditKey(_read(credential), origin="credential")
    file = state_dir / KEY_FILE
    if not file.exists():
        _make(file)
    return AuditKey(_read(file), origin="file")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            secret = file.read(_MOST_KEY_BYTES + 1)
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror}") from None
    if not MIN_KEY_BYTES <= len(secret) <= _MOST_KEY_BYTES:
        raise _unusable(path, f"has {len(secret)} bytes; {MIN_KEY_BYTES} to {_MOST_KEY_BYTES}")
    return secret


def _make(path: Path) -> None:
    """Durable before anything is written with it."""
    try:
        write_private(path, secrets.token_bytes(MIN_KEY_BYTES))
    except OSError as error:
        raise _unusable(path, f"cannot be made: {error.strerror}") from None


def _unusable(path: Path, reason: str) -> Unavailable:
    return Unavailable(
        f"the audit's key {path} {reason}",
        hint="restore it from a backup; with another key the audit so far cannot be verified",
    )


def parse_head(text: str) -> Head:
    """What the journal has as `SEQ:MAC`. Raises `ValueError`."""
    match = _HEAD.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:100]!r} is not SEQ:MAC, as the journal has it")
    return Head(int(match[1]), bytes.fromhex(match[2]))


_HEAD: Final = re.compile("([0-9]{1,18}):([0-9a-f]{64})")
