"""One alert, as the daemon sends it: a datagram with a JSON object.

Owns which facts an alert has. Anything else in a datagram is dropped, so nothing that is not meant
for a receiver can reach one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

MAX_MESSAGE_BYTES: Final = 64 * 1024
"""Largest datagram. An alert has some hundred bytes; commands and addresses may be long."""

FACTS: Final = ("budget", "principal", "window", "share", "used", "limit", "reset_at")
"""What a receiver is told, where the alert has it."""

MAX_RETRIES: Final = 10
MAX_TIMEOUT_S: Final = 600.0
_MAX_FACT_CHARS: Final = 1000

Fact = str | int | float


@dataclass(frozen=True, slots=True)
class Alert:
    """`facts` by the names of `FACTS`; `command` is an argument list, empty for none; `timeout_s`
    holds for one attempt, of which there are `retries` more."""

    facts: dict[str, Fact]
    command: tuple[str, ...]
    webhook: str | None
    timeout_s: float
    retries: int


class MessageError(ValueError):
    """A datagram that is no alert; `str()` says what is wrong, without its values."""


def decode_alert(data: bytes) -> Alert:
    """Raises `MessageError`."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        raise MessageError("not JSON") from None
    if not isinstance(message, dict):
        raise MessageError("not a map")
    return Alert(
        facts={name: fact for name in FACTS if (fact := _fact(message.get(name))) is not None},
        command=_command(message.get("command")),
        webhook=_webhook(message.get("webhook")),
        timeout_s=_number(message, "timeout_s", low=0.001, high=MAX_TIMEOUT_S),
        retries=int(_number(message, "retries", low=0, high=MAX_RETRIES)),
    )


def _fact(value: Any) -> Fact | None:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")[:_MAX_FACT_CHARS]
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _command(value: Any) -> tuple[str, ...]:
    items = [] if value is None else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise MessageError("'command' is no list of texts")
    if any("\0" in item for item in items):
        raise MessageError("'command' holds a NUL")
    return tuple(items)


def _webhook(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise MessageError("'webhook' is no text")


def _number(message: dict[str, Any], name: str, *, low: float, high: float) -> float:
    value = message.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and low <= value <= high):  # type: ignore[operator]  # a number by then
        raise MessageError(f"{name!r} is no number from {low} to {high}")
    return value  # type: ignore[return-value]
