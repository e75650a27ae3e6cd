"""What shape an answer must have: the `format` of `generate` and `chat`.

Owns the kinds of format and how large one may be. Whether a schema or a grammar can be followed is
judged where the model is.

Invariant: `decode(encode(x)) == x`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from openclawctl.wire.fields import Fields

MAX_FORMAT_CHARS: Final = 64 * 1024
"""Longest schema, pattern or grammar. Other requests wait while a worker compiles it: two seconds
for the worst of this length (measured 2026-11-23)."""

FORMAT_TEXTS: Final[dict[str, str]] = {
    "json_schema": "schema",
    "json_object": "",
    "regex": "pattern",
    "lark": "grammar",
    "gbnf": "grammar",
}
"""Every kind of format, and the field that holds its text."""


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """An answer follows `text`: a JSON schema, a regular expression or a grammar, as `type` says.
    For `json_object`, any JSON object will do, and `text` is empty."""

    type: str
    text: str = ""

    @classmethod
    def decode(cls, source: Fields) -> OutputFormat:
        kind = source.choice("type", FORMAT_TEXTS, default="")
        if not kind:
            raise source.fail(f"'type' is missing; allowed: {', '.join(FORMAT_TEXTS)}")
        name = FORMAT_TEXTS[kind]
        if not name:
            return cls(kind)
        if kind == "json_schema":
            return cls(kind, _decode_schema(source, name))
        return cls(kind, source.text(name, max_chars=MAX_FORMAT_CHARS))

    def encode(self) -> dict[str, Any]:
        name = FORMAT_TEXTS[self.type]
        return {"type": self.type, **({name: self.text} if name else {})}


def decode_format(source: Fields) -> OutputFormat | None:
    """The `format` of a request."""
    if not source.has("format"):
        return None
    return OutputFormat.decode(source.nested(source.mapping("format"), "format"))


def _decode_schema(source: Fields, name: str) -> str:
    """A schema as JSON text. It may come as such: then it can be deeper than the maps of a frame,
    and is taken as it stands."""
    if not source.is_text(name):
        return schema_text(source, name)
    import json  # here and below: most commands of openclawctl need none of it, and start faster

    text = source.text(name, max_chars=MAX_FORMAT_CHARS)
    try:
        is_map = isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        is_map = False
    if not is_map:
        raise source.fail(f"{name!r} is a text, but not that of a JSON object")
    return text


def schema_text(source: Fields, name: str) -> str:
    """The JSON text of a field that holds a schema as a map. Its keys keep their order: an answer
    has them in the same."""
    import json

    if not source.has(name):
        raise source.fail(f"{name!r} is missing; it must be a JSON schema, a map")
    try:
        text = json.dumps(source.mapping(name), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        raise source.fail(f"{name!r} holds what JSON cannot: binary data or not-a-number") from None
    if len(text) > MAX_FORMAT_CHARS:
        raise source.fail(
            f"{name!r} has {len(text)} characters as JSON; at most {MAX_FORMAT_CHARS}"
        )
    return text
