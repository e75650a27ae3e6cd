"""Where log records are written to, and the thread that does it."""

from __future__ import annotations

import collections
import contextlib
import errno
import logging
import logging.handlers
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from logging_journald import JournaldTransport

from openclawctl.wire.errors import Unavailable
from openclawd.observe.formats import (
    ConsoleFormatter,
    JournalFormatter,
    JsonFormatter,
    SyslogFormatter,
    journal_fields,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from openclawd.config import LoggingConfig

MAX_WAITING_RECORDS: Final = 10_000
"""Records kept while the target does not take them, about 10 MB; later ones are counted only."""

CLOSE_TIMEOUT_S: Final = 2.0
"""How long the end of the daemon waits for a target that takes nothing any more."""

JOURNAL_SOCKET: Final = Path("/run/systemd/journal/socket")
SYSLOG_SOCKET: Final = Path("/dev/log")


def targets_for(config: LoggingConfig) -> list[logging.Handler]:
    """The handlers a configuration asks for. Raises `Unavailable` when one cannot be opened."""
    targets = [_stderr_target(config.format)]
    if config.file is not None:
        targets.append(FileTarget(Path(config.file)))
    if config.syslog:
        targets.append(SyslogTarget(SYSLOG_SOCKET))
    return targets


def is_stderr_the_journal() -> bool:
    """Does systemd connect our stderr to the journal (systemd.exec(5), `$JOURNAL_STREAM`)?"""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _stderr_target(kind: str) -> logging.Handler:
    if kind == "journald" or (kind == "auto" and is_stderr_the_journal()):
        return JournalTarget(JOURNAL_SOCKET)
    return StreamTarget(sys.stderr, JsonFormatter() if kind == "json" else ConsoleFormatter())


class SyslogTarget(logging.handlers.SysLogHandler):
    """The system's syslog socket, found again after a restart of the service."""

    def __init__(self, path: Path) -> None:
        if not path.is_socket():
            raise Unavailable(
                f"there is no syslog service at {path}",
                hint="set logging.syslog to false, or start the service",
            )
        super().__init__(str(path), facility=self.LOG_DAEMON)
        self.ident = f"openclawd[{os.getpid()}]: "
        self.setFormatter(SyslogFormatter())

    def handleError(self, record: logging.LogRecord) -> None:
        """Let the writer count it, instead of printing a traceback to stderr."""
        del record
        raise  # it is called from an `except` block


class StreamTarget(logging.Handler):
    """An open text stream, flushed after each record."""

    def __init__(self, stream: TextIO, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        self._stream.write(self.format(record) + "\n")
        self._stream.flush()


class FileTarget(logging.Handler):
    """A file of JSON lines that belongs to us and our group (0640)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self._path = path
        self._is_line_cut = False
        try:
            self._descriptor = self._open()
        except OSError as error:
            raise Unavailable(
                f"the log file {path} cannot be opened: {error.strerror}",
                hint="check logging.file, and who owns its folder",
            ) from None

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record).encode() + b"\n"
        start = b"\n" if self._is_line_cut else b""  # the disk was full in the middle of a line
        data = start + line
        self._is_line_cut = os.write(self._descriptor, data) < len(data)
        if self._is_line_cut:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def reopen(self) -> None:
        """Go on in the file that has the name now. Raises `OSError`, and then keeps the old one."""
        previous, self._descriptor = self._descriptor, self._open()
        os.close(previous)
        self._is_line_cut = False

    def close(self) -> None:
        os.close(self._descriptor)
        super().close()

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


class JournalTarget(logging.Handler):
    """journald's own socket, so that fields and priorities arrive. stderr while it is away."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.setFormatter(JournalFormatter())
        self._fallback = StreamTarget(sys.stderr, ConsoleFormatter())
        # Not connected: the path is looked up for each entry, so a restarted journald is found.
        self._transport = JournaldTransport(path, connected=False)

    def emit(self, record: logging.LogRecord) -> None:
        entry = list(journal_fields(record, self.format(record)))
        try:
            self._transport.send(entry)
        except OSError:
            self._fallback.emit(record)

    def close(self) -> None:
        self._transport.socket.close()
        super().close()


class BackgroundWriter:
    """A bounded queue of records and the thread that writes them to every target."""

    def __init__(self, targets: Sequence[logging.Handler]) -> None:
        self._targets = targets
        self._waiting: collections.deque[logging.LogRecord] = collections.deque()
        self._changed = threading.Condition()
        self._num_lost = 0
        self._wants_reopen = False
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, record: logging.LogRecord) -> None:
        """Queue a record, or count it when the queue is full. Never waits for a target."""
        with self._changed:
            if len(self._waiting) >= MAX_WAITING_RECORDS:
                self._num_lost += 1
                return
            self._waiting.append(record)
            self._changed.notify()

    def ask_to_reopen(self) -> None:
        with self._changed:
            self._wants_reopen = True
            self._changed.notify()

    def close(self) -> None:
        """Write what is waiting and close the targets, or give up on one that takes nothing."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(CLOSE_TIMEOUT_S)
        if not self._thread.is_alive():
            for target in self._targets:
                target.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._wants_reopen or self._is_closing):
                    self._changed.wait()
                records = list(self._waiting)
                self._waiting.clear()
                wants_reopen, self._wants_reopen = self._wants_reopen, False
                is_closing = self._is_closing
            if wants_reopen:
                self._reopen()
            for record in records:
                self._write(record)
            if num_lost := self._take_num_lost():
                self._report(f"{num_lost} log messages were lost: the log did not take them")
            if is_closing:
                return

    def _take_num_lost(self) -> int:
        with self._changed:
            num_lost, self._num_lost = self._num_lost, 0
            return num_lost

    def _write(self, record: logging.LogRecord) -> None:
        """To every target; one that fails does not keep the record from the others."""
        for target in self._targets:
            try:
                target.emit(record)
            except Exception:  # a full disk, a closed pipe, a value without a text
                with self._changed:  # counted and reported; the next record may do better
                    self._num_lost += 1

    def _reopen(self) -> None:
        for target in self._targets:
            if isinstance(target, FileTarget):
                try:
                    target.reopen()
                except OSError as error:
                    self._report(f"the log file cannot be reopened: {error.strerror}")

    def _report(self, message: str) -> None:
        """A record of our own, straight to the targets."""
        record = logging.LogRecord(
            __name__, logging.WARNING, __file__, 0, message, args=None, exc_info=None
        )
        for target in self._targets:
            with contextlib.suppress(OSError, ValueError):  # what is lost here is counted no more
                target.emit(record)
