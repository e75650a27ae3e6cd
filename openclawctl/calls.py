"""One connection as a client sees it, and one request across its attempts. No I/O.

Owns what `Client` and `AsyncClient` share: which call a message belongs to, when a request is sent
again, and the sentences about lost and silent connections. Knows no socket, thread or loop; both
clients are shells that move its bytes.

Invariants: every call ends exactly once, with a result or an exception of its own; a call that was
abandoned gets no more news, and its id stays taken until the daemon has ended it.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from openclawctl import __version__
from openclawctl.wire.connection import Connection, Role
from openclawctl.wire.errors import (
    DaemonUnreachable,
    DeadlineExceeded,
    InvalidRequest,
    LimitExceeded,
    LocalProtocolError,
    OpenclawError,
    Problem,
    ProtocolError,
    RemoteProtocolError,
)
from openclawctl.wire.messages import (
    PROTOCOL_VERSION,
    Cancel,
    Delta,
    Done,
    Error,
    Event,
    Goaway,
    Hello,
    Message,
    Request,
    Welcome,
)
from openclawctl.wire.scheduling import MIN_DEADLINE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from openclawctl.results import Completion
    from openclawctl.wire.tokens import TokenLogprob

GREETING_TIMEOUT_S: Final = 60.0
"""Longest wait for `welcome`. The daemon answers it at once whatever its models do. One that does
not is stopped or stuck, and even `timeout_s=None` should not wait for that; or it restarts, and
systemd holds the connection meanwhile: a drain (30 s by default) and a start fit in."""

QUICK_TIMEOUT_S: Final = 30.0
"""Default `timeout_s` of the operations that no model takes part in."""

QUICK_OPS: Final = frozenset(
    {
        "ping",
        "status",
        "models",
        "usage",
        "usage.rows",
        "insights",
        "whoami",
        "budgets",
        "audit",
        "show",
        "requests.cancel",
        "resume",
    }
)

RETRY_CAP_S: Final = 30.0
"""A daemon that asks for a longer pause than this is reported to the caller instead."""

_FIRST_BACKOFF_S: Final = 0.25


class ConnectionLost(DaemonUnreachable):
    """The connection broke while a request was open. Whether the daemon did it is unknown."""


class Call:
    """One request on one connection. `inbox` holds news in the order it came."""

    __slots__ = ("end", "had_news", "id", "inbox", "is_on_fresh_connection", "op")

    def __init__(self, call_id: int, op: str, *, is_on_fresh_connection: bool) -> None:
        self.id = call_id
        self.op = op
        self.is_on_fresh_connection = is_on_fresh_connection
        self.inbox: deque[Delta | Event] = deque()
        self.end: dict[str, Any] | OpenclawError | None = None
        self.had_news = False

    @property
    def has_news(self) -> bool:
        return bool(self.inbox) or self.end is not None


class Session:
    """The client's end of one connection, with the calls on it. `path` is for messages only."""

    def __init__(self, path: str, *, hello: Hello) -> None:
        self._path = path
        self._wire = Connection(Role.CLIENT)
        self._calls: dict[int, Call] = {}
        self._num_opened = 0
        self._is_going_away = False
        self._make_failure: Callable[[Call], OpenclawError] | None = None
        self.welcome: Welcome | None = None
        self.outgoing = bytearray(self._encode(hello, name="hello"))
        """Bytes for the daemon; the shell removes what it has sent."""

    @property
    def can_open(self) -> bool:
        """Does the daemon still take requests here, as far as we know?"""
        return self._make_failure is None and not self._is_going_away

    @property
    def is_finished(self) -> bool:
        """Is there nothing left to wait for?"""
        return self._make_failure is not None or (self._is_going_away and not self._wire.num_open)

    @property
    def is_waiting_for_welcome(self) -> bool:
        return self.welcome is None and self._make_failure is None

    def open(self, op: str, params: dict[str, Any]) -> Call:
        """Put a request into `outgoing`. Raises `InvalidRequest` and `LimitExceeded` for what the
        wire cannot carry. On a connection that has failed, the call has already ended."""
        call = Call(self._num_opened + 1, op, is_on_fresh_connection=self._num_opened == 0)
        if self._make_failure is not None:
            call.end = self._make_failure(call)
            return call
        self.outgoing += self._encode(Request(call.id, op, params), name=op)
        self._num_opened += 1
        self._calls[call.id] = call
        return call

    def _encode(self, message: Hello | Request, *, name: str) -> bytes:
        try:
            return self._wire.send(message)
        except LocalProtocolError as error:
            raise LimitExceeded(f"{name}: {error}", hint="send less text") from None
        except UnicodeEncodeError:
            raise InvalidRequest(f"{name}: the text is not valid Unicode") from None
        except OverflowError:
            raise InvalidRequest(f"{name}: a number does not fit in 64 bits") from None

    def cancel(self, call: Call) -> None:
        """Ask the daemon to stop; the call then ends by itself. Nothing if it already has."""
        if self._make_failure is None and self._wire.is_open(call.id):
            self.outgoing += self._wire.send(Cancel(call.id))

    def abandon(self, call: Call) -> None:
        """Cancel, and forget the call: nobody waits for its news any more."""
        if self._calls.pop(call.id, None) is not None:
            self.cancel(call)

    def receive(self, data: bytes) -> list[Call]:
        """Take bytes in. Returns the calls that have news."""
        changed: list[Call] = []
        try:
            self._wire.receive(data)
            for message in self._wire.events():
                changed += self._apply(message)
        except RemoteProtocolError as error:
            changed += self.fail(self._broken(str(error)))
        return changed

    def receive_eof(self, reason: str = "the daemon closed it") -> list[Call]:
        """The connection is gone. Returns the calls that ended with it."""
        try:
            self._wire.receive_eof()
        except RemoteProtocolError as error:
            reason = str(error)
        return self.fail(self._lost(reason))

    def fail(self, make: Callable[[Call], OpenclawError]) -> list[Call]:
        """End everything here; `make` gives each call an exception of its own."""
        if self._make_failure is None:
            self._make_failure = make
        ended = list(self._calls.values())
        for call in ended:
            call.end = self._make_failure(call)
        self._calls.clear()
        self.outgoing.clear()
        return ended

    def fail_silent(self) -> list[Call]:
        """No `welcome` came within `GREETING_TIMEOUT_S`."""
        return self.fail(lambda call: silent_daemon(self._path))

    def _apply(self, message: Message) -> list[Call]:
        match message:
            case Welcome():
                return self._greet(message)
            case Goaway():
                self._is_going_away = True
                return []
            case Error(id=None):
                return self.fail(lambda call: message.to_problem())
            case Done() | Error() | Delta() | Event():
                return self._deliver(message)
            case _:
                raise AssertionError(f"the daemon may not send {message.type!r}")

    def _greet(self, welcome: Welcome) -> list[Call]:
        self.welcome = welcome
        if welcome.version == PROTOCOL_VERSION:
            return []
        return self.fail(
            self._broken(
                f"it speaks protocol version {welcome.version}, this client {PROTOCOL_VERSION}"
            )
        )

    def _deliver(self, message: Done | Error | Delta | Event) -> list[Call]:
        call = self._calls.get(message.id) if message.id is not None else None
        if call is None:
            return []  # abandoned
        call.had_news = True
        match message:
            case Done():
                call.end = message.result
            case Error():
                call.end = message.to_problem()
            case _:
                call.inbox.append(message)
                return [call]
        del self._calls[call.id]
        return [call]

    def _broken(self, reason: str) -> Callable[[Call], OpenclawError]:
        return lambda call: ProtocolError(
            f"{call.op}: the peer at {self._path} does not keep to the protocol: {reason}",
            hint="is it openclawd, and of the same version as this client?",
        )

    def _lost(self, reason: str) -> Callable[[Call], OpenclawError]:
        def make(call: Call) -> OpenclawError:
            state = "running" if call.had_news else "waiting for its first answer"
            return ConnectionLost(
                f"the connection to {self._path} was lost while {call.op!r} was {state}: {reason}",
                hint="the daemon may have been restarted: see `systemctl status openclawd` and "
                "its log",
            )

        return make


def silent_daemon(path: str) -> DaemonUnreachable:
    return DaemonUnreachable(
        f"the daemon at {path} has not answered within {GREETING_TIMEOUT_S:g} s",
        hint="it may be stopped or stuck: see `systemctl status openclawd` and its log",
    )


def no_news(call: Call, timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"{call.op}: no news from the daemon for {timeout_s:g} s; the request was cancelled",
        hint="raise timeout_s (--timeout) if the model may take longer",
    )


def progress_handler(
    on_progress: Callable[[str, float | None], object],
) -> Callable[[Event], None]:
    """An `on_event` that passes the progress of a load on."""

    def on_event(event: Event) -> None:
        if event.kind == "loading":
            on_progress(str(event.data.get("phase", "")), event.data.get("fraction"))

    return on_event


def models_handler(
    on_models: Callable[[list[dict[str, Any]]], object],
) -> Callable[[Event], None]:
    """An `on_event` that passes the models on which `watch` sends."""

    def on_event(event: Event) -> None:
        if event.kind == "models":
            on_models(rows_of(event.data, "models"))

    return on_event


def drain_handler(on_progress: Callable[[int], object]) -> Callable[[Event], None]:
    """An `on_event` that passes on how many requests are still open."""

    def on_event(event: Event) -> None:
        if event.kind == "draining":
            on_progress(event.data.get("open", 0))

    return on_event


def pull_handler(
    on_progress: Callable[[str, int, int | None], object] | None,
) -> Callable[[Event], None] | None:
    """An `on_event` that passes the progress of a download on."""
    if on_progress is None:
        return None

    def on_event(event: Event) -> None:
        if event.kind == "pulling":
            data = event.data
            on_progress(str(data.get("file", "")), data.get("bytes", 0), data.get("total_bytes"))

    return on_event


def status_params(*, latency: bool, requests: bool) -> dict[str, Any]:
    """What `status` is asked for besides."""
    asked = {"latency": latency, "requests": requests}
    return {name: True for name, is_asked in asked.items() if is_asked}


def rows_of(result: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The list under `name` in a plain result. Raises `ProtocolError` when there is none."""
    rows = result.get(name)
    if not isinstance(rows, list):
        raise ProtocolError(f"the daemon sent a result without {name!r}")
    return rows


def jitter() -> float:
    """A number in [0, 1) that differs between callers, without the cost of `random`."""
    return time.monotonic_ns() % 1000 / 1000


def hello(*, app: str | None, key: str | None) -> Hello:
    return Hello(PROTOCOL_VERSION, client=f"openclawctl/{__version__}", key=key, app=app)


class RetryRule:
    """How often and after which pauses a request is sent again. `limit` 0 turns it off."""

    def __init__(self, *, limit: int = 2) -> None:
        self.limit = limit

    def pause_s(
        self, problem: OpenclawError, *, num_retries: int, call: Call | None, jitter: float
    ) -> float | None:
        """Seconds to wait before the next attempt, or None to give up. `jitter` in [0, 1)
        spreads the callers of one overloaded daemon over a quarter of the pause."""
        if num_retries >= self.limit or not self._can_help(problem, num_retries, call):
            return None
        if isinstance(problem, ConnectionLost):
            return 0.0
        pause_s = problem.retry_after_s
        if pause_s is None:
            pause_s = _FIRST_BACKOFF_S * 2**num_retries
        return pause_s * (1 + jitter / 4) if pause_s <= RETRY_CAP_S else None

    def _can_help(self, problem: OpenclawError, num_retries: int, call: Call | None) -> bool:
        if isinstance(problem, ConnectionLost):
            # A kept connection that turns out to be dead: the daemon was restarted since.
            return call is not None and not (call.had_news or call.is_on_fresh_connection)
        if isinstance(problem, DaemonUnreachable):
            return num_retries > 0  # it is being restarted: it has just answered or been lost
        return isinstance(problem, Problem) and problem.retryable


class Exchange:
    """One request as its caller sees it, over as many attempts as it takes."""

    def __init__(
        self,
        op: str,
        params: dict[str, Any],
        *,
        timeout_s: float | None = None,
        retry: RetryRule | None = None,
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        self.op = op
        self.params = params
        self.timeout_s = QUICK_TIMEOUT_S if timeout_s is None and op in QUICK_OPS else timeout_s
        self.warnings: list[dict[str, Any]] = []
        self.result: dict[str, Any] | None = None
        self.is_cancelled = False
        self._retry = retry or RetryRule()
        self._num_retries = 0
        self._asked_at = time.monotonic()
        self._deadline_s: float | None = params.get("deadline_s")
        self._has_delta = False
        self._pieces: list[str] = []
        self._logprobs: dict[int, list[TokenLogprob]] = {}
        self._completion: Completion | None = None
        self._on_event = on_event

    @property
    def text(self) -> str:
        """The text of the first choice that was taken so far."""
        return "".join(self._pieces)

    @property
    def completion(self) -> Completion:
        """The result of `generate` or `chat`. Raises `RuntimeError` before the end."""
        if self.result is None:
            raise RuntimeError("a stream has no result before it was read to its end")
        if self._completion is None:
            from openclawctl import results  # here: see the note in Client.generate

            self._completion = results.completion(self.result, self.warnings, self._logprobs)
        return self._completion

    @property
    def is_ended(self) -> bool:
        return self.result is not None

    def take(self, call: Call) -> Delta | None:
        """The next delta that is here. None when there is none: then either `is_ended`, or news
        must be waited for. Raises what the request ended with, and what `on_event` raises."""
        while call.inbox:
            item = call.inbox.popleft()
            if isinstance(item, Delta):
                self._has_delta = True
                if item.index == 0:
                    self._pieces.append(item.text)
                if item.logprobs is not None:
                    self._logprobs.setdefault(item.index, []).extend(item.logprobs)
                return item
            self._note(item)
        if isinstance(call.end, OpenclawError):
            raise call.end
        self.result = call.end
        return None

    def _note(self, event: Event) -> None:
        if event.kind == "warning":
            self.warnings.append(event.data)
        if self._on_event is not None:
            self._on_event(event)

    def next_attempt_s(
        self, problem: OpenclawError, *, call: Call | None, jitter: float
    ) -> float | None:
        """Seconds until the request is sent again, or None when `problem` is the answer."""
        if self._has_delta or self.is_cancelled:
            return None
        pause_s = self._retry.pause_s(
            problem, num_retries=self._num_retries, call=call, jitter=jitter
        )
        self._num_retries += 1
        return pause_s if pause_s is None or self._is_in_time(pause_s) else None

    def _is_in_time(self, pause_s: float) -> bool:
        """Is there time left for an attempt after this pause? Then it gets what is left: the daemon
        counts a deadline from the arrival of each attempt, the caller from the first."""
        if self._deadline_s is None:
            return True
        left_s = self._deadline_s - (time.monotonic() - self._asked_at) - pause_s
        self.params = {**self.params, "deadline_s": left_s}
        return left_s >= MIN_DEADLINE_S
