"""Rows as CSV, for spreadsheets.

A cell of text that a spreadsheet would take for a formula gets an apostrophe in front: names of
applications and sessions are whatever a client calls them (OWASP, "CSV Injection").
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")


def csv_lines(
    columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, header: bool
) -> Iterator[str]:
    """Each row as one line, with its end: RFC 4180, but with the line ends of Unix."""
    if header:
        yield _line(columns)
    for row in rows:
        yield _line([_cell(row.get(column)) for column in columns])


def _line(cells: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)  # so that it quotes both of them
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return "'" + value
    return str(value)
