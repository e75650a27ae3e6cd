"""What the daemon asks of `openclawd-fetch`: one datagram with a JSON object.

Owns the fields of a request and of the replies (`progress`, `done`, `error`). The request is
checked: it carries what a client has written.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from openclawctl.wire.errors import InvalidRequest
from openclawctl.wire.fields import Fields

MAX_MESSAGE_BYTES: Final = 64 * 1024

_MAX_CHARS: Final = 4096
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}")
"""As names of models are in the configuration; with no way out of a folder."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Pull:
    """`source` is REPO[:FILE] of the hub at `endpoint`, or an address. `name` None: by the file."""

    source: str
    endpoint: str
    max_bytes: int
    revision: str = "main"
    name: str | None = None
    sha256: str | None = None
    replaces: bool = False
    is_unverified: bool = False


@dataclass(frozen=True, slots=True)
class Remove:
    """A model of the models folder, by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Verify:
    """The same."""

    name: str


@dataclass(frozen=True, slots=True)
class Copy:
    """A model's file, to the folder for copies."""

    path: str


Request = Pull | Remove | Verify | Copy


def decode_request(data: bytes) -> Request:
    """Raises `InvalidRequest`."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise InvalidRequest("openclawd-fetch was sent something that is no request")
    source = Fields(message, where="fetch", error=InvalidRequest)
    match kind := source.text("type"):
        case "pull":
            return _pull(source)
        case "remove":
            return Remove(_name(source))
        case "verify":
            return Verify(_name(source))
        case "copy":
            return Copy(source.text("path", max_chars=_MAX_CHARS))
    raise source.fail(f"'type' is {kind!r}, which this openclawd-fetch does not know")


def encode(kind: str, /, **fields: Any) -> bytes:
    """A reply."""
    return json.dumps({"type": kind, **fields}).encode()


def _pull(source: Fields) -> Pull:
    sha256 = source.text_or_none("sha256", max_chars=_MAX_CHARS)
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise source.fail(f"'sha256' is {sha256!r}; it must be 64 digits of 0-9 and a-f")
    return Pull(
        source=source.text("source", max_chars=_MAX_CHARS),
        endpoint=source.text("endpoint", max_chars=_MAX_CHARS).rstrip("/"),
        max_bytes=source.integer("max_bytes", low=1),
        revision=source.text_or_none("revision", max_chars=_MAX_CHARS) or "main",
        name=None if source.text_or_none("name") is None else _name(source),
        sha256=sha256,
        replaces=source.boolean("replace", default=False),
        is_unverified=source.boolean("unverified", default=False),
    )


def _name(source: Fields) -> str:
    name = source.text("name", max_chars=_MAX_CHARS)
    if not _NAME.fullmatch(name):
        raise source.fail(
            f"'name' is {name!r}; it must be letters, digits and . _ : -, beginning with a letter "
            "or digit"
        )
    return name
