"""API keys: how one looks, and whether one that a client sends is good. Pure.

Owns the form of keys and the keys that are in memory, so that letting a client in needs no SQL. The
daemon loads them at start and puts each change in after it is on disk. Never holds a secret:
only what SHA-256 makes of it.

Why SHA-256 and no slow hash: slow hashes make guessing passwords dear. A key is 256 random bits, of
which nobody guesses one however fast they hash, and a slow hash would let anybody who connects
make the daemon work (NIST SP 800-63B, 5.1.2.2: look-up secrets of 112 bits or more are to be hashed
with an approved one-way function, and salted and stretched only below that).

Invariants: a wrong key is refused in the same words and after the same work, whatever is wrong with
it; whether a key has expired or was revoked only its holder hears.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from openclawctl.wire.errors import Denied
from openclawd.admission.identity import Policy, Principal

if TYPE_CHECKING:
    from collections.abc import Iterable

SECRET_BYTES: Final = 32
PREFIX_BYTES: Final = 5
"""Of the visible part; as base32 it has 8 characters."""

USE_NOTED_EVERY_S: Final = 60.0
"""How often the last use of a key is written down."""

_FORM: Final = re.compile(r"(ocl_[a-z2-7]{8})_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class KeySecret:
    """What is kept of a secret. `prefix` is the part that lists show; `ends_at` (Unix time) is set
    when a newer one has taken its place."""

    prefix: str
    digest: bytes
    created_at: float
    ends_at: float | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key. `secrets`: the newest first; there are two while a rotation overlaps. `role` is a
    name, since the configuration may change it. Times are Unix time."""

    name: str
    secrets: tuple[KeySecret, ...]
    role: str
    tier: str
    models: tuple[str, ...]
    created_at: float
    created_by: str
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None

    @property
    def prefix(self) -> str:
        return self.secrets[0].prefix

    def state(self, *, now: float) -> str:
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "valid"


def make_secret(prefix_bytes: bytes, secret_bytes: bytes) -> str:
    """The text of a key: `ocl_`, 8 characters that may be shown, `_`, 43 that may not."""
    assert (len(prefix_bytes), len(secret_bytes)) == (PREFIX_BYTES, SECRET_BYTES)
    visible = base64.b32encode(prefix_bytes).decode().lower()
    hidden = base64.urlsafe_b64encode(secret_bytes).decode().rstrip("=")
    return f"ocl_{visible}_{hidden}"


def kept_of(secret: str, *, now: float) -> KeySecret:
    """What is stored of a key's text."""
    match = _FORM.fullmatch(secret)
    assert match is not None, "make_secret made it"
    return KeySecret(match[1], _digest(secret), now)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


_NO_SECRET: Final = KeySecret("", bytes(32), 0.0)
"""What a key is compared with when its prefix is not known."""


class KeyRegistry:
    """All keys by name, and their secrets by prefix."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._keys: dict[str, ApiKey] = {}
        self._by_prefix: dict[str, tuple[str, KeySecret]] = {}
        self._use_noted_at: dict[str, float] = {}
        for key in keys:
            self.put(key)

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, name: str) -> ApiKey | None:
        return self._keys.get(name)

    def all(self) -> list[ApiKey]:
        """By name."""
        return [self._keys[name] for name in sorted(self._keys)]

    def put(self, key: ApiKey) -> None:
        """Take in a new key, or a changed one in place of what it was."""
        if (old := self._keys.get(key.name)) is not None:
            for secret in old.secrets:
                del self._by_prefix[secret.prefix]
        self._keys[key.name] = key
        for secret in key.secrets:
            self._by_prefix[secret.prefix] = (key.name, secret)

    def prefix_of(self, text: str, *, now: float) -> str:
        """The prefix of a key that a client sent, if it is good. Raises `Denied`."""
        match = _FORM.fullmatch(text)
        prefix = match[1] if match else ""
        _, secret = self._by_prefix.get(prefix, ("", _NO_SECRET))
        digest = hashlib.sha256(text.encode(errors="replace")).digest()
        if not hmac.compare_digest(digest, secret.digest) or secret is _NO_SECRET:
            raise Denied(
                "the API key is not accepted",
                hint="check the key file; `openclawctl keys list` shows an administrator which "
                "keys there are",
            )
        self.check(prefix, now=now)
        return prefix

    def check(self, prefix: str, *, now: float) -> ApiKey:
        """The key of a secret that was good when its connection was made. Raises `Denied` when it
        has been revoked, rotated away or has expired since."""
        name, secret = self._by_prefix.get(prefix, ("", _NO_SECRET))
        key = self._keys.get(name)
        if key is None or (secret.ends_at is not None and secret.ends_at <= now):
            raise Denied(
                "this API key was replaced by a newer one", hint="use the one that took its place"
            )
        if (state := key.state(now=now)) != "valid":
            verb = "was revoked" if state == "revoked" else "has expired"
            raise Denied(
                f"the API key {name!r} {verb}",
                hint="ask an administrator for a new one (`openclawctl keys create`)",
            )
        return key

    def principal_of(self, prefix: str, policy: Policy, *, now: float) -> Principal:
        """Whom a good key makes of its bearer, in place of all that the kernel says of them: also
        of their groups, or one key would be counted differently by who uses it. Raises `Denied`.
        """
        key = self.check(prefix, now=now)
        role = policy.roles.get(key.role)
        if role is None:
            raise Denied(
                f"the API key {key.name!r} has the role {key.role!r}, which is not configured now",
                hint="an administrator can put it back under `security.roles`, or make a new key",
            )
        return Principal(f"key:{key.name}", role, key.tier, key=key.name, models=key.models)

    def note_use(self, prefix: str, *, now: float) -> str | None:
        """The name of the key whose use is to be written down now; None when that was done less
        than a minute ago."""
        name, _ = self._by_prefix[prefix]
        if now - self._use_noted_at.get(name, -USE_NOTED_EVERY_S) < USE_NOTED_EVERY_S:
            return None
        self._use_noted_at[name] = now
        self._keys[name] = replace(self._keys[name], last_used_at=now)
        return name
