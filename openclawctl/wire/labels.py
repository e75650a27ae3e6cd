"""What a client calls the application and the session that a request belongs to.

Owns these two parameters, which every operation that computes has. They are for limits and reports;
who is asking, no label changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from openclawctl.wire.fields import Fields

LABELS: Final = ("app", "session")
MAX_LABEL_CHARS: Final = 128
"""A name or an id, not a story: each stands in a ledger row and in a line of the log."""


def decode_labels(source: Fields) -> dict[str, str | None]:
    """`app` and `session`; None where the request does not say."""
    return {name: _label(source, name) for name in LABELS}


def _label(source: Fields, name: str) -> str | None:
    label = source.line_or_none(name, max_chars=MAX_LABEL_CHARS)
    if label == "":
        raise source.fail(f"{name!r} must not be empty")
    return label
