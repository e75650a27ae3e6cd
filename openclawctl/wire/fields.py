"""Typed getters for maps that came from outside.

Owns how a missing, mistyped or out-of-range value is described. Every message and every operation's
parameters are read through these; unknown fields are left alone. Never looks anything up by a name
that came from the wire.
"""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping


_MAX_CHOICE_CHARS: Final = 256
"""Longest value of which there is a fixed choice."""


class Fields:
    """A map under inspection. `error` makes the exception for whatever is wrong with it."""

    def __init__(
        self, values: Mapping[str, Any], *, where: str, error: Callable[[str], Exception]
    ) -> None:
        self._values = values
        self._where = where
        self._error = error

    def has(self, name: str) -> bool:
        """Is there a value other than nil?"""
        return self._values.get(name) is not None

    def is_list(self, name: str) -> bool:
        """Is the value a list, whatever it holds?"""
        return isinstance(self._values.get(name), list)

    def is_map(self, name: str) -> bool:
        """Is the value a map, whatever it holds?"""
        return isinstance(self._values.get(name), dict)

    def is_text(self, name: str) -> bool:
        """Is the value a string?"""
        return isinstance(self._values.get(name), str)

    def unknown(self, known: Iterable[str]) -> list[str]:
        """Fields that no getter will ask for, in the order they came."""
        known = set(known)
        return [name for name in self._values if name not in known]

    def text(self, name: str, *, max_chars: int | None = None) -> str:
        value = self._required(name, str, "a string")
        assert isinstance(value, str)
        if max_chars is not None and len(value) > max_chars:
            raise self._error(
                f"{self._where}: {name!r} has {len(value)} characters; at most {max_chars}"
            )
        return value

    def text_or_none(self, name: str, *, max_chars: int | None = None) -> str | None:
        return self.text(name, max_chars=max_chars) if self.has(name) else None

    def line(self, name: str, *, max_chars: int) -> str:
        """A string that stands in one line of a table or a log: no line breaks, no control
        characters, nothing that changes the direction of what follows. It may be empty."""
        value = self.text(name, max_chars=max_chars)
        if not value.isprintable():
            raise self.fail(f"{name!r} must be one line of printable characters")
        return value

    def line_or_none(self, name: str, *, max_chars: int) -> str | None:
        return self.line(name, max_chars=max_chars) if self.has(name) else None

    def integer(self, name: str, *, low: int, high: int = 2**63 - 1) -> int:
        value = self._required(name, int, "an integer")
        assert isinstance(value, int)
        self._check_range(name, value, low, high)
        return value

    def integer_or_none(self, name: str, *, low: int, high: int = 2**63 - 1) -> int | None:
        return self.integer(name, low=low, high=high) if self.has(name) else None

    def number(self, name: str, *, low: float, high: float) -> float:
        value = self._values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong_type(name, "a number", value)
        self._check_range(name, value, low, high)
        return float(value)

    def number_or_none(self, name: str, *, low: float, high: float) -> float | None:
        return self.number(name, low=low, high=high) if self.has(name) else None

    def boolean(self, name: str, *, default: bool) -> bool:
        if not self.has(name):
            return default
        value = self._required(name, bool, "true or false")
        assert isinstance(value, bool)
        return value

    def boolean_or_none(self, name: str) -> bool | None:
        return self.boolean(name, default=False) if self.has(name) else None

    def binary_or_none(self, name: str) -> bytes | None:
        if not self.has(name):
            return None
        value = self._required(name, bytes, "binary data")
        assert isinstance(value, bytes)
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """A map; an empty one when the field is absent."""
        if not self.has(name):
            return {}
        value = self._required(name, dict, "a map")
        assert isinstance(value, dict)
        return value

    def items(self, name: str, *, max_items: int) -> list[Any]:
        """A list of anything; an empty one when the field is absent."""
        if not self.has(name):
            return []
        value = self._required(name, list, "a list")
        assert isinstance(value, list)
        if len(value) > max_items:
            raise self._error(
                f"{self._where}: {name!r} has {len(value)} items; at most {max_items}"
            )
        return value

    def texts(self, name: str, *, max_items: int) -> list[str]:
        """A list of strings; an empty one when the field is absent."""
        values = self.items(name, max_items=max_items)
        for value in values:
            if not isinstance(value, str):
                raise self._wrong_type(name, "a list of strings", value)
        return values

    def integers(self, name: str, *, max_items: int, low: int, high: int) -> list[int]:
        """A list of integers; an empty one when the field is absent."""
        values = self.items(name, max_items=max_items)
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int):
                raise self._wrong_type(name, "a list of integers", value)
            self._check_range(name, value, low, high)
        return values

    def choice(self, name: str, choices: Iterable[str], *, default: str) -> str:
        if not self.has(name):
            return default
        value = self.text(name, max_chars=_MAX_CHOICE_CHARS)
        allowed = list(choices)
        if value not in allowed:
            raise self._error(
                f"{self._where}: {name!r} is {value!r}; allowed: {', '.join(allowed)}"
                + suggestion(value, allowed)
            )
        return value

    def nested(self, value: Any, where: str) -> Fields:
        """The same kind of inspection for a map inside this one."""
        if not isinstance(value, dict):
            raise self._error(f"{where} must be a map, not {_type_name(value)}")
        return Fields(value, where=where, error=self._error)

    def fail(self, message: str) -> Exception:
        """The exception for something only the caller can judge."""
        return self._error(f"{self._where}: {message}")

    def _required(self, name: str, wanted: type, description: str) -> object:
        value = self._values.get(name)
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise self._wrong_type(name, description, value)
        return value

    def _wrong_type(self, name: str, description: str, value: Any) -> Exception:
        if value is None:
            return self._error(f"{self._where}: {name!r} is missing; it must be {description}")
        return self._error(
            f"{self._where}: {name!r} must be {description}, not {_type_name(value)}"
        )

    def _check_range(self, name: str, value: float, low: float, high: float) -> None:
        if not low <= value <= high:
            raise self._error(f"{self._where}: {name!r} is {value}; allowed: {low} to {high}")


def suggestion(found: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'x'?` when something close to `found` is allowed, else nothing."""
    if len(found) > _MAX_CHOICE_CHARS:  # comparing costs time and memory by its length
        return ""
    close = difflib.get_close_matches(found, list(allowed), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


_TYPE_NAMES = {
    "NoneType": "nil",
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bytes": "binary data",
    "list": "a list",
    "dict": "a map",
}


def _type_name(value: object) -> str:
    name = type(value).__name__
    return _TYPE_NAMES.get(name, name)


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a value of maps and lists, keys included."""
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from texts_in(item)
        case dict():
            for key, item in value.items():
                yield from texts_in(key)
                yield from texts_in(item)


def present(record: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not None."""
    values = ((f.name, getattr(record, f.name)) for f in fields(record))
    return {name: value for name, value in values if value is not None}
