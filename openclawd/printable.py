"""Text that may go to a terminal, a journal or a line of a log, whoever made it."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with control, formatting and half characters as escapes."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
