"""What the operations on model files take: `pull`, `models.remove`, `models.verify`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.fields import present

if TYPE_CHECKING:
    from openclawctl.wire.fields import Fields

MAX_SOURCE_CHARS: Final = 2048
MODEL_FILE_NAME_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}"
"""As names of models are in the configuration; no way out of a folder."""

_NAME: Final = re.compile(MODEL_FILE_NAME_PATTERN)
_SHA256: Final = re.compile(r"[0-9A-Fa-f]{64}")


@dataclass(frozen=True, slots=True)
class PullParams:
    """`pull`: `source` is REPO, REPO:FILE or an https address. `name` None: by the file.
    `unverified`: take what nobody gives a checksum of."""

    source: str
    name: str | None = None
    revision: str | None = None
    sha256: str | None = None
    replace: bool = False
    unverified: bool = False

    @classmethod
    def decode(cls, source: Fields) -> PullParams:
        sha256 = source.text_or_none("sha256", max_chars=MAX_SOURCE_CHARS)
        if sha256 is not None and not _SHA256.fullmatch(sha256):
            raise source.fail(f"'sha256' is {sha256!r}; it must be 64 hexadecimal digits")
        return cls(
            source=source.text("source", max_chars=MAX_SOURCE_CHARS),
            name=_name(source, "name") if source.has("name") else None,
            revision=source.text_or_none("revision", max_chars=MAX_SOURCE_CHARS),
            sha256=sha256 and sha256.lower(),
            replace=source.boolean("replace", default=False),
            unverified=source.boolean("unverified", default=False),
        )

    def encode(self) -> dict[str, Any]:
        return present(self)


@dataclass(frozen=True, slots=True)
class ModelFileParams:
    """`models.remove` and `models.verify`: a model in the folder that `pull` puts them into."""

    model: str

    @classmethod
    def decode(cls, source: Fields) -> ModelFileParams:
        return cls(_name(source, "model"))

    def encode(self) -> dict[str, Any]:
        return present(self)


def _name(source: Fields, field: str) -> str:
    name = source.text(field, max_chars=MAX_SOURCE_CHARS)
    if not _NAME.fullmatch(name):
        raise source.fail(
            f"{field!r} is {name!r}; it must be letters, digits and . _ : -, at most 200, and begin"
            " with a letter or digit"
        )
    return name
