"""One socket that several threads share, without a thread of its own.

Owns polling, sending, receiving and waking. What the messages mean is `calls.py`'s.

Every waiting thread either leads (polls the socket and hands out what arrives) or follows (waits
for its own call's condition); a leader that has what it came for wakes another waiter, which leads
next. Polling happens without the lock, everything else with it.

Invariants: a waiting thread is polling, or another one is; a frame is handed out whole or the
connection is given up, so that Ctrl-C at any moment cannot leave a call waiting for ever; the
socket is closed when nobody polls it.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from openclawctl import calls, paths
from openclawctl.calls import Call, Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openclawctl.wire.messages import Hello

_READ_BYTES: Final = 256 * 1024


class Link:
    """One connected socket. Raises `DaemonUnreachable` when there is no connecting."""

    def __init__(self, path: str, *, hello: Hello) -> None:
        self._session = Session(path, hello=hello)
        self._socket = _connect(path)
        self._pid = os.getpid()
        self._greeting_deadline = time.monotonic() + calls.GREETING_TIMEOUT_S
        self._lock = threading.Lock()
        self._waiting: dict[int, threading.Condition] = {}
        self._num_polling = 0
        self._abandoned: deque[Call] = deque()
        """Calls whose streams were collected as garbage, which can happen with the lock held."""

    def can_open(self) -> bool:
        """Can this connection take another request? Notices a daemon that left meanwhile."""
        with self._lock:
            if not self._num_polling and self._session.can_open:
                self._read_nowait()
            return self._session.can_open

    def is_finished(self) -> bool:
        return self._session.is_finished

    def open(self, op: str, params: dict[str, Any]) -> Call:
        with self._lock:
            call = self._session.open(op, params)
            self._flush_nowait()
            return call

    def cancel(self, call: Call) -> None:
        with self._lock:
            self._session.cancel(call)
            self._flush_nowait()

    def abandon(self, call: Call) -> None:
        """Cancel, and let nobody wait for the end."""
        self._check_pid()
        with self._lock:
            self._abandoned.append(call)
            self._flush_nowait()

    def abandon_collected(self, call: Call) -> None:
        """`abandon` for `__del__`, which may run in a thread that holds the lock: then whoever
        uses the connection next sends the cancel."""
        if os.getpid() != self._pid:
            return  # a forked child drops its copy of a stream; the request is its parent's
        self._abandoned.append(call)
        if self._lock.acquire(blocking=False):
            try:
                self._flush_nowait()
            finally:
                self._lock.release()

    def wait_news(self, call: Call, *, timeout_s: float | None) -> None:
        """Block until `call` has news. Raises `DeadlineExceeded` after `timeout_s` without any."""
        self._check_pid()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._lock:
            self._waiting[call.id] = threading.Condition(self._lock)
            try:
                while not call.has_news:
                    self._wait_once(call, self._remaining_s(deadline))
                    self._check_time(call, deadline, timeout_s)
            finally:
                del self._waiting[call.id]
                self._wake_next_leader()

    def close(self) -> None:
        """End the connection; calls that are open end with it."""
        if os.getpid() != self._pid:
            self._socket.close()  # the child's copy only: a shutdown would end the parent's too
            return
        with self._lock:
            self._session.receive_eof("this client was closed")
            self._end()

    def _check_pid(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError("a stream cannot be used in a forked child; start a new request")

    def _remaining_s(self, deadline: float | None) -> float | None:
        if self._session.is_waiting_for_welcome:
            deadline = min(deadline or self._greeting_deadline, self._greeting_deadline)
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def _check_time(self, call: Call, deadline: float | None, timeout_s: float | None) -> None:
        if call.has_news:
            return
        now = time.monotonic()
        if self._session.is_waiting_for_welcome and now >= self._greeting_deadline:
            self._session.fail_silent()
            self._end()
        elif deadline is not None and timeout_s is not None and now >= deadline:
            self._session.abandon(call)
            self._flush_nowait()
            raise calls.no_news(call, timeout_s)

    def _wait_once(self, call: Call, remaining_s: float | None) -> None:
        """Follow if somebody polls and nothing is left to send; else poll. A thread that still has
        something to send polls beside one that does not watch for room to write."""
        if self._num_polling and not self._session.outgoing:
            self._waiting[call.id].wait(remaining_s)
            return
        self._poll(remaining_s)
        self._flush_nowait()
        self._read_nowait()

    def _poll(self, remaining_s: float | None) -> None:
        poller = select.poll()
        is_writing = bool(self._session.outgoing)
        poller.register(self._socket, select.POLLIN | is_writing * select.POLLOUT)
        self._num_polling += 1
        try:
            with _released(self._lock):
                poller.poll(None if remaining_s is None else remaining_s * 1000 + 1)
        finally:
            self._num_polling -= 1
            self._close_if_finished()

    def _flush_nowait(self) -> None:
        """Send what can be sent without blocking, cancels of collected streams included."""
        while self._abandoned:
            self._session.abandon(self._abandoned.popleft())
        outgoing = self._session.outgoing
        while outgoing and not self._session.is_finished:
            try:
                del outgoing[: self._socket.send(outgoing)]
            except BlockingIOError:
                return
            except OSError:
                self._read_nowait()  # what the daemon said before it closed explains more
                self._session.receive_eof()
                self._end()
                return

    def _read_nowait(self) -> None:
        """Hand out what has arrived. Anything that interrupts it gives the connection up."""
        if self._session.is_finished:
            return
        try:
            changed = self._receive()
        except BaseException:
            self._session.receive_eof("it was interrupted")
            self._end()
            raise
        for call in changed:
            if condition := self._waiting.get(call.id):
                condition.notify()
        self._close_if_finished()

    def _receive(self) -> list[Call]:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            return self._session.receive_eof(error.strerror or str(error))
        return self._session.receive(data) if data else self._session.receive_eof()

    def _end(self) -> None:
        """The session has failed: wake everybody, and whoever polls."""
        with suppress(OSError):  # already disconnected
            self._socket.shutdown(socket.SHUT_RDWR)
        for condition in self._waiting.values():
            condition.notify()
        self._close_if_finished()

    def _wake_next_leader(self) -> None:
        if not self._num_polling:
            for condition in self._waiting.values():
                condition.notify()
                return

    def _close_if_finished(self) -> None:
        if self._session.is_finished and not self._num_polling:
            self._socket.close()


def _connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(calls.GREETING_TIMEOUT_S)
        sock.connect(path)
        sock.settimeout(0)
    except OSError as error:
        sock.close()
        raise paths.why_unreachable(path, error) from error
    except BaseException:
        sock.close()
        raise
    return sock


@contextmanager
def _released(lock: threading.Lock) -> Iterator[None]:
    lock.release()
    try:
        yield
    finally:
        lock.acquire()
