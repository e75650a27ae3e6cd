"""What commands read: standard input and files, as a whole and up to a limit.

Owns the limits: `/dev/zero`, or a program that never stops writing, must end in a sentence, not in
the OOM killer. Every module of the command line that reads a text whole reads it here.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, BinaryIO, Final

import click

from openclawctl.wire.framing import MAX_FRAME_BYTES
from openclawctl.wire.units import format_size

if TYPE_CHECKING:
    from pathlib import Path

MAX_INPUT_BYTES: Final = 4 * MAX_FRAME_BYTES
"""Of one text: about sixteen million words, which is four times what a message to the daemon takes
by default. Whatever is smaller is judged by the daemon's own limits."""


def read_stdin() -> str:
    """All of standard input as text. Raises a usage error when it is no text, or too long."""
    return _read_text(sys.stdin.buffer, "standard input")


def read_file(path: Path) -> str:
    """All of a file as text, its lines ended by newlines. Raises a usage error when it cannot be
    read, is no text, or too long."""
    try:
        with path.open("rb") as file:
            text = _read_text(file, str(path))
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read: {error.strerror}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_text(file: BinaryIO, name: str) -> str:
    try:
        data = file.read(MAX_INPUT_BYTES + 1)
    except OSError as error:
        raise click.UsageError(f"{name} cannot be read: {error.strerror}") from None
    if len(data) > MAX_INPUT_BYTES:
        raise click.UsageError(
            f"{name} has more than {format_size(MAX_INPUT_BYTES)}, and no text of a request is so "
            "long; was another file meant?"
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{name} is not UTF-8 text (byte {error.start})") from None


def piped() -> str:
    """All of standard input as text. Raises a usage error when nothing is piped in, too."""
    if not is_stdin_piped():
        raise click.UsageError("nothing to read: give it as an argument, or pipe it in")
    return read_stdin()


def lines_of_stdin() -> list[str]:
    """The lines of standard input that are not empty."""
    return [line for line in piped().splitlines() if line.strip()]


def is_stdin_piped() -> bool:
    """Is standard input a pipe or a file, rather than a terminal or nothing?"""
    return sys.stdin is not None and not sys.stdin.closed and not sys.stdin.isatty()
