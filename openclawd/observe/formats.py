"""How a log record looks: on a terminal, as JSON, in the journal.

Invariant: nothing a caller can name (models, clients, applications) starts a new line, a new field
or a terminal sequence; everything that is not printable is written as an escape.
"""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from openclawd.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FIELDS_ATTRIBUTE: Final = "fields"
"""The attribute of a record that holds its structured fields."""

_MESSAGE_ID: Final = "message_id"
"""A field of the journal only (`message_ids.py`)."""

_TRACEBACK_INDENT: Final = "    "


def fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    """The structured fields of a record, without those that hold nothing."""
    fields: Mapping[str, Any] = getattr(record, FIELDS_ATTRIBUTE, {})
    return {name: value for name, value in fields.items() if value is not None}


def shown_fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    """Those that are for people, too."""
    return {name: value for name, value in fields_of(record).items() if name != _MESSAGE_ID}


def plain(value: Any) -> Any:
    """A value as JSON has it; floats to the microsecond."""
    if isinstance(value, float):
        return round(value, 6)
    return value if isinstance(value, str | int | bool) else str(value)


class ConsoleFormatter(logging.Formatter):
    """`2026-11-23 15:36:01.123 INFO  server.peer: message key=value`, with the local time."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        milliseconds = int(record.created * 1000) % 1000
        return f"{seconds}.{milliseconds:03d} {record.levelname:<7} {one_line(record)}" + indented(
            traceback_text(self, record)
        )


class SyslogFormatter(logging.Formatter):
    """`server.peer: message key=value`; syslog adds time, name and severity. No tracebacks' lines:
    syslog servers split or refuse them."""

    def format(self, record: logging.LogRecord) -> str:
        text = traceback_text(self, record)
        return one_line(record) + (f" | {printable(text)}" if text else "")


class JsonFormatter(logging.Formatter):
    """One object a line: `time` (UTC), `level`, `logger`, `message`, the fields, `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{seconds}.{int(record.created * 1000) % 1000:03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage()),
        }
        for name, value in shown_fields_of(record).items():
            entry.setdefault(name, plain(value))
        if text := traceback_text(self, record):
            entry["exception"] = text
        return json.dumps(entry)


class JournalFormatter(logging.Formatter):
    """The text of a journal entry; its fields go beside it (`journal_fields`)."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(record) + indented(traceback_text(self, record))


_PRIORITIES: Final = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
_DEBUG_PRIORITY: Final = 7


def journal_fields(record: logging.LogRecord, message: str) -> Iterator[tuple[str, str]]:
    """The fields of a journal entry (systemd.journal-fields(7))."""
    yield "MESSAGE", message
    priorities = (priority for level, priority in _PRIORITIES if record.levelno >= level)
    yield "PRIORITY", str(next(priorities, _DEBUG_PRIORITY))
    yield "SYSLOG_IDENTIFIER", "openclawd"
    yield "LOGGER", record.name
    yield "CODE_FILE", record.pathname
    yield "CODE_LINE", str(record.lineno)
    yield "CODE_FUNC", record.funcName or ""
    for name, value in fields_of(record).items():
        yield name.upper(), printable(str(plain(value)))


def one_line(record: logging.LogRecord) -> str:
    """`server.peer: message key=value`."""
    name = record.name.removeprefix("openclawd.")
    pairs = [f"{field}={_quoted(value)}" for field, value in shown_fields_of(record).items()]
    return " ".join([f"{name}: {printable(record.getMessage())}", *pairs])


def traceback_text(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The traceback of a record, or nothing."""
    if record.exc_info and record.exc_info[0] is not None and not record.exc_text:
        record.exc_text = formatter.formatException(record.exc_info)
    return record.exc_text or ""


def indented(text: str) -> str:
    """The lines of a traceback, each set in so that none looks like an entry of its own."""
    lines = text.splitlines()
    return "".join(f"\n{_TRACEBACK_INDENT}{printable(line)}" for line in lines)


def _quoted(value: Any) -> str:
    """A value as logfmt has it: quoted where a reader could mistake its end."""
    text = printable(str(plain(value)))
    if text and not any(char in text for char in ' "='):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
