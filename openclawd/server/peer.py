"""One client connection, and the requests open on it.

Owns the connection's bytes, its identity, and what happens when the client is slow or goes away.
Knows `wire` and the asyncio transport; what a request means is `dispatch.py`'s.

Flow control: while the transport's buffer is full, nothing is read from the client and the deltas
of each result are merged, so memory stays bounded and nobody else waits. A client that takes
nothing for `STALL_TIMEOUT_S` is disconnected.

Invariants: every request is answered by exactly one `done` or `error` unless the client is gone; a
client that is gone has all its requests cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from openclawctl.wire.completion import MAX_MODEL_NAME_CHARS
from openclawctl.wire.connection import Connection, Role, State
from openclawctl.wire.errors import (
    Cancelled,
    Problem,
    ProtocolError,
    RemoteProtocolError,
    ShuttingDown,
    SlowConsumer,
    Unavailable,
    Unsupported,
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
from openclawctl.wire.tokens import num_items
from openclawd.observe import message_ids
from openclawd.observe.logs import fields, log_bug
from openclawd.outbox import Outbox
from openclawd.server.credentials import credentials_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Iterator

    from openclawctl.wire.tokens import TokenLogprob
    from openclawctl.wire.tools import ToolCall
    from openclawd.admission.identity import Caller, Credentials, Principal

logger = logging.getLogger(__name__)

MESSAGES_PER_CALLBACK: Final = 64
"""Messages handled before other connections get their turn: about 1.6 ms of `ping`, of which one
connection gets 40,000 a second (docs/performance.md)."""

WRITE_BUFFER_BYTES: Final = 64 * 1024
"""Unsent bytes from which on a client counts as slow: over ten times a usual burst of deltas."""

MAX_MERGED_CHARS: Final = 4 * 1024 * 1024
"""Most text that waits for one slow client, over all its requests."""

_CHARS_OF_ITEM: Final = 4
"""What a number in a delta counts for. As `MAX_MERGED_CHARS` is four times `MAX_RESULT_ITEMS`, what
is merged is never more than a frame may have items."""

MAX_UNSENT_BYTES: Final = 64 * 1024 * 1024
"""Most bytes that wait for one slow client (whole results and vectors are not merged). A client
that lets this much pile up is disconnected."""

STALL_TIMEOUT_S: Final = 60.0
COME_AGAIN_S: Final = 1.0
"""After a stop: soon, since a socket of systemd's keeps who comes before the next start."""

LINGER_S: Final = 1.0
"""How long a refused client gets to read why, before the socket is closed under it."""


_READ_BUFFER: Final = memoryview(bytearray(64 * 1024))
"""What any client has just sent; it is copied before the next one's is read. `asyncio.Protocol`
allocates 256 KiB for each read, and after 60,000 bad connections 2.6 MB of the heap were holes."""


@dataclass(slots=True)
class Traffic:
    """Bytes of frames, over all connections since the start."""

    received_bytes: int = 0
    sent_bytes: int = 0


class Host(Protocol):
    """What a peer needs of the daemon."""

    traffic: Traffic
    server_name: str
    hello_timeout_s: float
    max_frame_bytes: int

    def admit(self, peer: Peer, credentials: Credentials) -> None: ...
    def recognise(self, credentials: Credentials, then: Callable[[Caller], object]) -> None: ...
    def identify(self, peer: Peer, caller: Caller) -> Principal: ...
    def greet(self, peer: Peer, key: str | None) -> Principal: ...
    def welcome_limits(self) -> dict[str, Any]: ...
    def forget(self, peer: Peer) -> None: ...
    def note_refused(self, peer: Peer, problem: Problem) -> None: ...
    def begin(self, exchange: Exchange) -> Coroutine[Any, Any, None]: ...
    def run_session(self, session: Coroutine[Any, Any, None]) -> None: ...


@dataclass(slots=True)
class _Merged:
    """Deltas of one result that wait for a slow client. `num_bytes` is what their frames would take
    each by itself: no less than one for all of them."""

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_chars: int = 0
    num_bytes: int = 0

    def add(self, delta: Delta, num_bytes: int) -> int:
        """Take in a delta whose frame would take so much; how many characters it counts for."""
        self.num_bytes += num_bytes
        self.texts.append(delta.text)
        self.reasoning.append(delta.reasoning or "")
        self.tool_calls += delta.tool_calls or ()
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs or ()
        records = (num_items(1, num_top=len(each.top)) for each in delta.logprobs or ())
        num_chars = 1 + len(delta.text) + len(self.reasoning[-1])
        num_chars += sum(len(call.arguments) for call in delta.tool_calls or ())
        num_chars += _CHARS_OF_ITEM * (len(delta.token_ids) + sum(records))
        self.num_chars += num_chars
        return num_chars

    def delta(self, request_id: int, index: int) -> Delta:
        return Delta(
            request_id,
            index,
            "".join(self.texts),
            self.token_ids,
            logprobs=self.logprobs or None,
            reasoning="".join(self.reasoning) or None,
            tool_calls=self.tool_calls or None,
        )


class Exchange:
    """One open request: the way back to its client, and how it is cancelled.

    `on_cancel` is what a cancel does; the request's handler changes it as it goes on. Everything
    sent after the client has gone disappears.
    """

    def __init__(self, peer: Peer, request: Request, arrived_at: float) -> None:
        self.peer = peer
        self.request = request
        self.arrived_at = arrived_at
        self.on_cancel: Callable[[], object] | None = None
        self.cancel_problem: Problem | None = None
        self.is_recorded = False
        """Has the request a ledger row, and so an audit row of its own?"""

    @property
    def is_cancelled(self) -> bool:
        return self.cancel_problem is not None

    def event(self, kind: str, data: dict[str, Any]) -> None:
        self.peer.send(Event(self.request.id, kind, data))

    def warn(self, code: str, message: str) -> None:
        self.event("warning", {"code": code, "message": message})

    def delta(self, delta: Delta) -> None:
        self.peer.send_delta(delta)

    def forget_params(self) -> None:
        """They have been decoded: what else a client had put into them may be large, and a request
        may be open for long. The model's name stays, for the audit."""
        model = self.request.params.get("model")
        is_name = isinstance(model, str) and len(model) <= MAX_MODEL_NAME_CHARS
        self.request = replace(self.request, params={"model": model} if is_name else {})

    def done(self, result: dict[str, Any]) -> None:
        self.peer.finish(Done(self.request.id, result))

    def error(self, problem: Problem) -> None:
        self.peer.finish(Error.from_problem(self.request.id, problem))

    def cancel(self, problem: Problem) -> None:
        """Ask the handler to end. `problem` is what the client gets if nothing was computed yet."""
        if self.cancel_problem is None:
            self.cancel_problem = problem
            if self.on_cancel is not None:
                self.on_cancel()


class Peer(asyncio.BufferedProtocol):
    """The server's end of one connection."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._connection = Connection(Role.SERVER, max_frame_bytes=host.max_frame_bytes)
        self._exchanges: dict[int, Exchange] = {}
        self._merged: dict[tuple[int, int], _Merged] = {}
        self._num_merged_chars = 0
        self._is_paused = False
        self._gone = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport
        self._outbox: Outbox
        self._is_recognised = False
        self.principal: Principal
        """From when the caller's names are known; with a key, another one from `hello` on."""
        self.key_prefix = ""
        self.credentials: Credentials
        self.client = ""
        self.app = ""

    @property
    def num_open(self) -> int:
        return len(self._exchanges)

    @property
    def is_slow(self) -> bool:
        """Does it not read what it was sent?"""
        return self._is_paused

    @property
    def is_recognised(self) -> bool:
        """Is it known who is at the other end?"""
        return self._is_recognised

    @property
    def exchanges(self) -> list[Exchange]:
        return list(self._exchanges.values())

    # ---- to the client ----

    def send(self, message: Message) -> None:
        """Send soon (`Outbox`). Nothing happens when the client is gone."""
        is_alive = self._connection.state is not State.CLOSED and not self._gone.is_set()
        request_id = getattr(message, "id", None)
        is_expected = request_id is None or self._connection.is_open(request_id)
        if is_alive and is_expected:
            data = self._connection.send(message)
            self._host.traffic.sent_bytes += len(data)
            self._outbox.put(data)
            if self._is_paused and self._outbox.num_unsent_bytes > MAX_UNSENT_BYTES:
                self._disconnect(f"has left {MAX_UNSENT_BYTES} bytes of its results unread")

    def send_delta(self, delta: Delta) -> None:
        """Send a piece of a result, or keep it until the client reads again. What would be more
        than a frame goes to the transport meanwhile, and counts as kept."""
        if not self._is_paused or delta.embedding is not None:
            self.send(delta)
            return
        key = delta.id, delta.index
        num_bytes = self._connection.frame_bytes(delta)
        merged = self._merged.setdefault(key, _Merged())
        if merged.num_bytes + num_bytes > self._connection.max_frame_bytes:
            self.send(merged.delta(*key))
            merged = self._merged[key] = _Merged()
        self._num_merged_chars += merged.add(delta, num_bytes)
        if self._num_merged_chars > MAX_MERGED_CHARS:
            self._cancel_slow()

    def finish(self, message: Done | Error) -> None:
        """Send a request's end, after whatever of it still waits."""
        assert message.id is not None
        self._flush(message.id)
        self.send(message)
        self._exchanges.pop(message.id, None)

    def say_goodbye(self, reason: str) -> None:
        """Tell the client that no more requests are taken here."""
        if self._connection.state is State.OPEN:
            self.send(Goaway(reason))

    def close(self) -> None:
        """Close after what is buffered has been sent. One that has not said `hello` yet is told to
        come again: without a word it would take its request for lost."""
        if self._connection.state is State.NEW:
            self._refuse(ShuttingDown("the daemon is stopping", retry_after_s=COME_AGAIN_S))
        else:
            self._outbox.close()

    def abort(self) -> None:
        """Close at once, unsent bytes or not."""
        self._transport.abort()

    # ---- asyncio.BufferedProtocol ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._outbox = Outbox(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        sock: socket.socket = transport.get_extra_info("socket")
        self.credentials = credentials = credentials_of(sock)
        try:
            self._host.admit(self, credentials)
        except Problem as problem:
            self._refuse_caller(f"uid {credentials.uid}", problem)
            return
        self._set_timer(self._host.hello_timeout_s, self._time_out_hello)
        self._host.run_session(self._session())
        self._host.recognise(credentials, self._become)

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint
        return _READ_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self._host.traffic.received_bytes += nbytes
        self._connection.receive(_READ_BUFFER[:nbytes])
        self._handle_messages()

    def eof_received(self) -> bool:
        """The client has closed, or at least will say no more: what it asked is cancelled, but for
        what it is answered already."""
        self._outbox.flush()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # how the client went away makes no difference
        self._set_timer(0, None)
        self._merged.clear()
        self._gone.set()
        self._host.forget(self)

    def pause_writing(self) -> None:
        self._is_paused = True
        self._transport.pause_reading()
        if self._connection.state is not State.CLOSED:
            self._set_timer(STALL_TIMEOUT_S, self._time_out_stall)

    def resume_writing(self) -> None:
        self._is_paused = False
        if self._connection.state is not State.CLOSED:  # a refused client keeps its timer
            self._set_timer(0, None)
        for request_id in {request_id for request_id, _ in self._merged}:
            self._flush(request_id)
        self._num_merged_chars = 0
        self._outbox.flush()  # it may be full again
        self._handle_messages()

    # ---- from the client ----

    def _become(self, caller: Caller) -> None:
        """The caller's names are there, at once or after a while: read what it has sent since."""
        if self._gone.is_set() or self._connection.state is State.CLOSED:
            return
        try:
            self.principal = self._host.identify(self, caller)
        except Problem as problem:
            self._refuse_caller(caller.name, problem)
            return
        self._is_recognised = True
        self._handle_messages()

    async def _session(self) -> None:
        """Owns the tasks of this connection's requests; ends when the client has gone and they have
        ended too."""
        async with asyncio.TaskGroup() as self._tasks:
            await self._gone.wait()
            for exchange in self.exchanges:
                exchange.cancel(Cancelled("the client went away"))

    def _handle_messages(self) -> None:
        """Handle what is complete, a bounded number at a time; read on when all of it is done."""
        if self._gone.is_set() or self._is_paused:
            return
        if not self._is_recognised:
            self._transport.pause_reading()
            return
        try:
            has_more = self._handle_some(self._connection.events())
        except RemoteProtocolError as error:
            logger.warning("client %s broke the protocol: %s", self.client or "(unnamed)", error)
            self._refuse(ProtocolError(str(error), hint="this is a bug of the client program"))
        except Problem as problem:
            self._refuse(problem)
        else:
            if has_more:
                self._transport.pause_reading()
                self._loop.call_soon(self._handle_messages)
            elif not self._is_paused:
                self._transport.resume_reading()

    def _handle_some(self, messages: Iterator[Message]) -> bool:
        """Handle up to `MESSAGES_PER_CALLBACK`. False when that was all."""
        for _ in range(MESSAGES_PER_CALLBACK):
            message = next(messages, None)
            if message is None:
                return False
            self._handle(message)
        return True

    def _handle(self, message: Message) -> None:
        match message:
            case Hello():
                self._greet(message)
            case Request():
                exchange = Exchange(self, message, self._loop.time())
                self._exchanges[message.id] = exchange
                self._tasks.create_task(self._serve(exchange))
            case Cancel(id=request_id):
                self._exchanges[request_id].cancel(Cancelled("the request was cancelled"))
            case _:
                raise AssertionError(f"the connection let {message.type!r} through")

    async def _serve(self, exchange: Exchange) -> None:
        """Serve one request in this task. Only from here on can a cancel end the task: one that is
        cancelled before its first step never runs, and its client would wait for ever.

        Whatever is raised here would end the daemon. `begin` answers every request by itself, so it
        is a bug, and costs one client its connection."""
        try:
            if exchange.cancel_problem is not None:
                exchange.error(exchange.cancel_problem)
                return
            task = asyncio.current_task()
            assert task is not None
            exchange.on_cancel = task.cancel
            await self._host.begin(exchange)
        except Exception:
            what = exchange.request.op
            log_bug(logger, "a %r failed on a bug; its client is disconnected", what)
            self.abort()

    def _greet(self, hello: Hello) -> None:
        if hello.version < PROTOCOL_VERSION:
            raise Unsupported(f"protocol version {hello.version} is not spoken here any more")
        try:
            self.principal = self._host.greet(self, hello.key)
        except Problem as problem:
            self._refuse_caller(self.principal.name, problem)
            return
        self._set_timer(0, None)
        self.client, self.app = hello.client, hello.app or ""
        self.send(
            Welcome(
                version=PROTOCOL_VERSION,
                server=self._host.server_name,
                principal=self.principal.name,
                limits=self._host.welcome_limits(),
            )
        )

    def _refuse_caller(self, who: str, problem: Problem) -> None:
        logger.warning(
            "a connection of %s was refused: %s",
            who,
            problem,
            extra=fields(message_id=message_ids.CALLER_REFUSED),
        )
        self._refuse(problem)

    def _refuse(self, problem: Problem) -> None:
        """Tell the client why, and close once it has had the time to read it."""
        self._host.note_refused(self, problem)
        if self._connection.state is State.CLOSED:  # after a broken frame the answer still goes out
            self._connection = Connection(Role.SERVER)
        if not self._transport.is_closing():
            self._outbox.put(self._connection.send(Error.from_problem(None, problem)))
            self._outbox.flush()
            self._set_timer(LINGER_S, self._transport.abort)
            if self._transport.can_write_eof():
                self._transport.write_eof()

    # ---- slow clients ----

    def _flush(self, request_id: int) -> None:
        """Send what was merged for a request, whether or not the client reads."""
        for key in [key for key in self._merged if key[0] == request_id]:
            merged = self._merged.pop(key)
            self._num_merged_chars -= merged.num_chars
            self.send(merged.delta(*key))

    def _cancel_slow(self) -> None:
        problem = SlowConsumer(
            "the results of this connection were not read in time",
            hint="read the connection continuously, or do not stream",
        )
        for exchange in self.exchanges:
            exchange.cancel(problem)

    def _time_out_hello(self) -> None:
        seconds = self._host.hello_timeout_s
        if self._is_recognised:
            self._refuse(ProtocolError(f"no `hello` came within {seconds:.0f} s"))
            return
        problem = Unavailable(
            f"the names of the caller and its groups were not found within {seconds:.0f} s",
            hint="the directory service that knows them (nsswitch.conf) does not answer",
        )
        self._refuse_caller("somebody", problem)

    def _time_out_stall(self) -> None:
        self._disconnect(f"has read nothing for {STALL_TIMEOUT_S:.0f} s")

    def _disconnect(self, reason: str) -> None:
        name, principal = self.client or "(unnamed)", self.principal.name
        logger.warning(
            "client %s of %s %s and is disconnected",
            name,
            principal,
            reason,
            extra=fields(message_id=message_ids.CLIENT_TOO_SLOW),
        )
        self.abort()

    def _set_timer(self, delay_s: float, callback: Callable[[], object] | None) -> None:
        """One timer at a time: for `hello`, then for a stalled client, then for a refused one."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, callback) if callback else None
