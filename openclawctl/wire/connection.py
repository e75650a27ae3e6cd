"""One connection as a state machine: bytes in, events out; messages in, bytes out.

Owns the order in which messages may come and which requests are open. Knows no socket and no time.
The states, and who may send what in each, are the table `MAY_SEND` below; `docs/protocol.md` shows
the same table and a test compares the two.

Invariants: a request id is open from its `request` to its one `done` or `error`; nothing is sent or
accepted for an id that is not open; a `RemoteProtocolError` closes the connection for good.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from openclawctl.wire.errors import LocalProtocolError, RemoteProtocolError
from openclawctl.wire.framing import (
    HELLO_FRAME_BYTES,
    MAX_FRAME_BYTES,
    MAX_RESULT_ITEMS,
    MOST_FRAME_BYTES,
    FrameReader,
    encode_frame,
)
from openclawctl.wire.messages import (
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
    decode_client_message,
    decode_server_message,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


class Role(enum.Enum):
    CLIENT = "client"
    SERVER = "server"


class State(enum.Enum):
    NEW = "new"
    GREETING = "greeting"  # hello was sent, welcome was not
    OPEN = "open"
    CLOSED = "closed"


MAY_SEND: Final[dict[tuple[Role, State], frozenset[type[Message]]]] = {
    (Role.CLIENT, State.NEW): frozenset({Hello}),
    (Role.CLIENT, State.GREETING): frozenset({Request, Cancel}),
    (Role.CLIENT, State.OPEN): frozenset({Request, Cancel}),
    (Role.CLIENT, State.CLOSED): frozenset(),
    (Role.SERVER, State.NEW): frozenset({Error, Goaway}),
    (Role.SERVER, State.GREETING): frozenset({Welcome, Error, Goaway}),
    (Role.SERVER, State.OPEN): frozenset({Event, Delta, Done, Error, Goaway}),
    (Role.SERVER, State.CLOSED): frozenset(),
}


class Connection:
    """Either end of a connection. `max_frame_bytes` holds once `welcome` has passed; a client's is
    then the one that `welcome` names."""

    def __init__(self, role: Role, *, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._role = role
        self._peer_role = Role.SERVER if role is Role.CLIENT else Role.CLIENT
        self._max_frame_bytes = max_frame_bytes
        self._state = State.NEW
        self._open_ids: set[int] = set()
        self._reader = (
            FrameReader(max_bytes=HELLO_FRAME_BYTES)
            if role is Role.SERVER
            else FrameReader(max_bytes=max_frame_bytes, max_items=MAX_RESULT_ITEMS)
        )

    @property
    def state(self) -> State:
        return self._state

    @property
    def open_ids(self) -> frozenset[int]:
        """Requests that have neither `done` nor `error` yet."""
        return frozenset(self._open_ids)

    @property
    def num_open(self) -> int:
        return len(self._open_ids)

    def is_open(self, request_id: int) -> bool:
        return request_id in self._open_ids

    def send(self, message: Message) -> bytes:
        """The bytes of a message. Raises `LocalProtocolError` when it may not be sent now."""
        if type(message) not in MAY_SEND[self._role, self._state]:
            raise LocalProtocolError(
                f"the {self._role.value} may not send {message.type!r} while {self._state.value}"
            )
        data = encode_frame(encode(message), max_bytes=self._max_frame_bytes)
        reason = self._apply(message)
        if reason:
            raise LocalProtocolError(reason)
        return data

    def frame_bytes(self, message: Message) -> int:
        """What a message takes on the wire. Raises `LocalProtocolError` when it is too large."""
        return len(encode_frame(encode(message), max_bytes=self._max_frame_bytes))

    @property
    def max_frame_bytes(self) -> int:
        """The largest frame that may be sent, but for the four bytes of its length."""
        return self._max_frame_bytes

    def receive(self, data: bytes | memoryview) -> None:
        """Add bytes from the peer; `events()` then gives the messages in them."""
        if self._state is not State.CLOSED:
            self._reader.feed(data)

    def receive_eof(self) -> None:
        """The peer closed. Raises `RemoteProtocolError` if it did so inside a frame."""
        cut = self._reader.num_buffered_bytes
        was_closed = self._state is State.CLOSED
        self._state = State.CLOSED
        if cut and not was_closed:
            raise RemoteProtocolError(f"the connection ended inside a frame, {cut} bytes into it")

    def events(self) -> Iterator[Message]:
        """Every message that is complete now, in order. Raises `RemoteProtocolError`.

        On the server nothing follows a `hello` until `send(Welcome)` was called: the consumer
        answers it before it asks for the next event.
        """
        while (message := self._next_event()) is not None:
            yield message

    def _next_event(self) -> Message | None:
        try:
            while not self._is_waiting_for_welcome():
                payload = self._reader.next_payload()
                if payload is None:
                    return None
                message = self._accept(payload)
                if message is not None:
                    return message
        except RemoteProtocolError:
            self._state = State.CLOSED
            raise
        return None

    def _is_waiting_for_welcome(self) -> bool:
        if self._role is Role.SERVER and self._state is State.GREETING:
            return True
        return self._state is State.CLOSED

    def _accept(self, payload: dict[str, object]) -> Message | None:
        """The message of a payload, or None for one that is to be ignored."""
        is_server = self._role is Role.SERVER
        message = (decode_client_message if is_server else decode_server_message)(payload)
        if message is None:
            return None  # a type of a later version
        if type(message) not in MAY_SEND[self._peer_role, self._state]:
            raise RemoteProtocolError(
                f"{message.type!r} is not allowed while the connection is {self._state.value}"
            )
        if isinstance(message, Cancel) and message.id not in self._open_ids:
            return None  # it crossed the end of its request
        reason = self._apply(message)
        if reason:
            raise RemoteProtocolError(reason)
        return message

    def _apply(self, message: Message) -> str | None:
        """Take a message into the state. Returns what is wrong with it, or None."""
        match message:
            case Hello():
                self._state = State.GREETING
            case Welcome():
                self._open(message)
            case Request(id=request_id):
                if request_id in self._open_ids:
                    return f"request id {request_id} is still open on this connection"
                self._open_ids.add(request_id)
            case Error(id=None):
                self._state = State.CLOSED
            case Done(id=request_id) | Error(id=int(request_id)):
                if request_id not in self._open_ids:
                    return f"{message.type!r} for request id {request_id}, which is not open"
                self._open_ids.remove(request_id)
            case Event(id=request_id) | Delta(id=request_id):
                if request_id not in self._open_ids:
                    return f"{message.type!r} for request id {request_id}, which is not open"
            case _:
                pass  # cancel and goaway change nothing here
        return None

    def _open(self, welcome: Welcome) -> None:
        self._state = State.OPEN
        named = welcome.limits.get("max_frame_bytes", self._max_frame_bytes)
        is_sound = type(named) is int and HELLO_FRAME_BYTES <= named <= MOST_FRAME_BYTES
        if self._role is Role.CLIENT and is_sound:
            self._max_frame_bytes = named
        self._reader.max_bytes = self._max_frame_bytes
