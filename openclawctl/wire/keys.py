"""What the operations on API keys take. A key itself is only ever in a result, and in `hello`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.fields import present
from openclawctl.wire.messages import LONGEST_S

if TYPE_CHECKING:
    from openclawctl.wire.fields import Fields

KEY_NAME_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
MAX_KEY_MODELS: Final = 256
MAX_GRANT_CHARS: Final = 256
"""Longest name of a role or tier, and longest pattern of models."""

DEFAULT_OVERLAP_S: Final = 86_400.0
"""How long the old secret stays good after a rotation: a day for every program to get the new."""


@dataclass(frozen=True, slots=True)
class KeyCreateParams:
    """`keys.create`. `models` are patterns (None: all that the role may use); None in `expires_s`:
    never."""

    name: str
    role: str
    tier: str | None = None
    models: list[str] | None = None
    expires_s: float | None = None

    @classmethod
    def decode(cls, source: Fields) -> KeyCreateParams:
        return cls(
            name=_name(source),
            role=source.text("role", max_chars=MAX_GRANT_CHARS),
            tier=source.text_or_none("tier", max_chars=MAX_GRANT_CHARS),
            models=_models(source),
            expires_s=_expires_s(source),
        )

    def encode(self) -> dict[str, Any]:
        return present(self)


@dataclass(frozen=True, slots=True)
class KeyParams:
    """`keys.show` and `keys.revoke`."""

    name: str

    @classmethod
    def decode(cls, source: Fields) -> KeyParams:
        return cls(_name(source))

    def encode(self) -> dict[str, Any]:
        return present(self)


@dataclass(frozen=True, slots=True)
class KeyRotateParams:
    """`keys.rotate`. The old secret stays good for `overlap_s`; with `expires_s` the key gets a new
    end, too."""

    name: str
    overlap_s: float = DEFAULT_OVERLAP_S
    expires_s: float | None = None

    @classmethod
    def decode(cls, source: Fields) -> KeyRotateParams:
        overlap_s = source.number_or_none("overlap_s", low=0, high=LONGEST_S)
        return cls(
            name=_name(source),
            overlap_s=DEFAULT_OVERLAP_S if overlap_s is None else overlap_s,
            expires_s=_expires_s(source),
        )

    def encode(self) -> dict[str, Any]:
        return present(self)


def _name(source: Fields) -> str:
    name = source.text("name", max_chars=MAX_GRANT_CHARS)
    if re.fullmatch(KEY_NAME_PATTERN, name) is None:
        raise source.fail(
            "'name' must be 1 to 64 letters, digits and . _ -, beginning with a letter or digit"
        )
    return name


def _models(source: Fields) -> list[str] | None:
    if not source.has("models"):
        return None
    models = source.texts("models", max_items=MAX_KEY_MODELS)
    if not models or not all(0 < len(pattern) <= MAX_GRANT_CHARS for pattern in models):
        raise source.fail(f"'models' must be patterns of 1 to {MAX_GRANT_CHARS} characters")
    return models


def _expires_s(source: Fields) -> float | None:
    return source.number_or_none("expires_s", low=1, high=LONGEST_S)
