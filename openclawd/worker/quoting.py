"""What a model file or a library says, as a part of a message to people.

Owns how much of it: the text comes from a file that may be hostile, a message goes through the
daemon into logs, the ledger's rows and clients' terminals, and one that is longer than a frame can
be sent by nobody. Pure.
"""

from __future__ import annotations

from typing import Final

MAX_QUOTED_CHARS: Final = 500
"""Some lines of a terminal."""

MAX_MESSAGE_CHARS: Final = 4000
"""A whole message, whatever is quoted in it. No message of ours comes near."""


def shortened(text: str, most: int = MAX_QUOTED_CHARS) -> str:
    """The text, or its first `most` characters and how many there were."""
    if len(text) <= most:
        return text
    return f"{text[:most]}… ({len(text)} characters)"
