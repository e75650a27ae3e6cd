"""Logging: where records go, and the one line per finished request.

Records are made where something happens and written by a thread of their own, so that a terminal
nobody reads, a full disk or a stuck journal never holds up the event loop. What does not fit in the
bounded queue meanwhile is counted, and the count is logged once writing goes on.

Never logged: text of prompts and completions.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import CODES, Kind
from openclawd.observe import message_ids
from openclawd.observe.formats import FIELDS_ATTRIBUTE
from openclawd.observe.targets import BackgroundWriter, targets_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from openclawd.config import LoggingConfig

logger = logging.getLogger(__name__)
_request_logger = logging.getLogger("openclawd.requests")

_bound: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar("bound")
_writers: Final[list[BackgroundWriter]] = []
"""The writer in use, if logging is configured."""


@contextlib.contextmanager
def configured(config: LoggingConfig) -> Iterator[None]:
    """Log as configured until the end of the block, then write what is waiting.

    Raises `Unavailable` when the file or syslog cannot be opened.
    """
    writer = BackgroundWriter(targets_for(config))
    handler = _Handler(writer)
    root = logging.getLogger()
    previous_handlers, previous_level = root.handlers[:], root.level
    root.handlers[:] = [handler]
    set_level(config.level)
    _writers.append(writer)
    try:
        yield
    finally:
        _writers.remove(writer)
        root.handlers[:] = previous_handlers
        root.setLevel(previous_level)
        writer.close()


def set_level(level: str) -> None:
    """Log from this level on: `debug`, `info`, `warning` or `error`."""
    logging.getLogger().setLevel(level.upper())


def reopen() -> None:
    """Open the log file anew, after logrotate has moved it away. Does not block."""
    for writer in _writers:
        writer.ask_to_reopen()
    logger.info("log file reopened")  # also makes the writer look now, however quiet it is


def fields(**values: Any) -> dict[str, Any]:
    """Structured fields for one record: `logger.info("…", extra=fields(model="m"))`."""
    return {FIELDS_ATTRIBUTE: values}


def log_bug(logger: logging.Logger, text: str, *args: object, **values: Any) -> None:
    """The exception that is being handled is a mistake of ours: with where it was, what it ended,
    and the id that administrators look for."""
    extra = fields(message_id=message_ids.BUG, **values)
    logger.exception(text, *args, extra=extra, stacklevel=2)


@contextlib.contextmanager
def bound(**values: Any) -> Iterator[None]:
    """Add fields to every record of this task (and of tasks it starts) inside the block."""
    token = _bound.set({**_bound.get({}), **values})
    try:
        yield
    finally:
        _bound.reset(token)


def log_request(
    *,
    request_id: str,
    principal: str,
    model: str,
    op: str,
    app: str | None = None,
    prompt_tokens: int = 0,
    cached_tokens: int = 0,
    completion_tokens: int = 0,
    load_s: float = 0.0,
    queue_s: float = 0.0,
    ttft_s: float | None = None,
    total_s: float = 0.0,
    finish_reason: str | None = None,
    error_code: str | None = None,
) -> None:
    """The canonical line of a finished request. Failures of the service are warnings."""
    values = {name: value for name, value in locals().items() if value not in (None, "")}
    values["message_id"] = message_ids.REQUEST_FINISHED
    level = logging.WARNING if error_code in _OUR_FAILURES else logging.INFO
    _request_logger.log(level, "request finished", extra={FIELDS_ATTRIBUTE: values})


_OUR_FAILURES: Final = {
    code.value for code, info in CODES.items() if info.kind in (Kind.FAILED, Kind.BUG)
}


class _Handler(logging.Handler):
    """Completes a record in the context where it was made and hands it to the writer."""

    def __init__(self, writer: BackgroundWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        # The arguments may change, and the exception may hold half the daemon alive.
        try:
            record.msg, record.args = record.getMessage(), None
        except (TypeError, ValueError) as error:
            record.msg, record.args = f"(bad log call: {error}) {record.msg}", None
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = _FORMATTER.formatException(record.exc_info)
        record.exc_info = None
        own = getattr(record, FIELDS_ATTRIBUTE, {})
        setattr(record, FIELDS_ATTRIBUTE, {**_bound.get({}), **own})
        self._writer.put(record)


_FORMATTER: Final = logging.Formatter()
