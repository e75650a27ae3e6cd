"""The message types of protocol version 1, and how each is read from and written to a map.

Owns the fields of every message. The order in which messages may come is `connection.py`'s; what an
operation's `params` and `result` hold is `operations.py`'s.

Invariants: `decode(encode(message)) == message`; unknown fields are ignored; new fields come last
and have defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

from openclawctl.wire.errors import Problem, RemoteProtocolError, problem_from_wire
from openclawctl.wire.fields import Fields
from openclawctl.wire.tokens import TokenLogprob, decode_logprobs, decode_token_ids, encode_logprobs
from openclawctl.wire.tools import ToolCall, decode_tool_calls, encode_tool_calls

if TYPE_CHECKING:
    from collections.abc import Callable

PROTOCOL_VERSION: Final = 1
_MAX_NAME_CHARS: Final = 256
"""Longest client, application, operation or principal name."""

MAX_ERROR_BYTES: Final = 8 * 1024
"""Longest message and longest hint of an error: both fit the smallest frame that can be set."""

LONGEST_S: Final = 1e10
"""Longest time in seconds, three centuries: no infinity reaches arithmetic on times."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The client's first message. `key` replaces the identity the kernel reports; it is in no
    `repr`, which could end in a log."""

    type: ClassVar[str] = "hello"
    version: int
    client: str
    key: str | None = field(default=None, repr=False)
    app: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """Ask for one operation. `id` is unique among this connection's open requests."""

    type: ClassVar[str] = "request"
    id: int
    op: str
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop an open request. Always answered by that request's own `done` or `error`."""

    type: ClassVar[str] = "cancel"
    id: int


@dataclass(frozen=True, slots=True)
class Welcome:
    """`hello` is accepted. `version` is the one both sides speak from now on."""

    type: ClassVar[str] = "welcome"
    version: int
    server: str
    principal: str
    limits: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """News of an open request: `queued`, `loading`, `started`, `warning`, or a later kind."""

    type: ClassVar[str] = "event"
    id: int
    kind: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a result. `token_ids` are the tokens sampled since the last delta of this index;
    their text may come later (half a character, the start of a stop string). `logprobs` has a
    record of each, where they were asked for. `reasoning` is text, too, of what comes before the
    answer. `tool_calls` are whole."""

    type: ClassVar[str] = "delta"
    id: int
    index: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    embedding: bytes | None = None
    logprobs: list[TokenLogprob] | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """The good end of a request."""

    type: ClassVar[str] = "done"
    id: int
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Error:
    """The bad end of a request, or, with `id` nil, of the connection."""

    type: ClassVar[str] = "error"
    id: int | None
    code: str
    kind: str
    message: str
    hint: str = ""
    retry_after_s: float | None = None

    @classmethod
    def from_problem(cls, request_id: int | None, problem: Problem) -> Error:
        """Cut where the problem quotes so much that no frame could hold it."""
        told = problem.as_dict()
        return cls(
            request_id, **{**told, "message": _cut(told["message"]), "hint": _cut(told["hint"])}
        )

    def to_problem(self) -> Problem:
        return problem_from_wire(
            self.code, self.kind, self.message, hint=self.hint, retry_after_s=self.retry_after_s
        )


@dataclass(frozen=True, slots=True)
class Goaway:
    """The daemon takes no more requests on this connection; open ones still end."""

    type: ClassVar[str] = "goaway"
    reason: str


def _cut(text: str) -> str:
    data = text.encode("utf-8", "replace")
    if len(data) <= MAX_ERROR_BYTES:
        return data.decode()
    return data[:MAX_ERROR_BYTES].decode("utf-8", "ignore") + "…"


ClientMessage = Hello | Request | Cancel
ServerMessage = Welcome | Event | Delta | Done | Error | Goaway
Message = ClientMessage | ServerMessage


def encode(message: Message) -> dict[str, Any]:
    """The map of a message. Fields that hold nothing are left out."""
    fields: dict[str, Any] = {"type": message.type}
    for name in message.__slots__:
        value = getattr(message, name)
        if value is not None:
            fields[name] = value
    if (logprobs := fields.get("logprobs")) is not None:
        fields["logprobs"] = encode_logprobs(logprobs)
    if (calls := fields.get("tool_calls")) is not None:
        fields["tool_calls"] = encode_tool_calls(calls)
    return fields


def decode_client_message(payload: dict[str, Any]) -> ClientMessage:
    """What a client may send. Raises `RemoteProtocolError` for anything else."""
    name, fields = _open(payload)
    decoder = _CLIENT_DECODERS.get(name)
    if decoder is None:
        raise RemoteProtocolError(f"unknown message type {name!r}")
    return decoder(fields)


def decode_server_message(payload: dict[str, Any]) -> ServerMessage | None:
    """What the daemon may send; None for a type that this client does not know yet."""
    name, fields = _open(payload)
    decoder = _SERVER_DECODERS.get(name)
    return decoder(fields) if decoder else None


def _open(payload: dict[str, Any]) -> tuple[str, Fields]:
    name = Fields(payload, where="message", error=RemoteProtocolError).text(
        "type", max_chars=_MAX_NAME_CHARS
    )
    return name, Fields(payload, where=f"message {name!r}", error=RemoteProtocolError)


def _hello(fields: Fields) -> Hello:
    return Hello(
        version=fields.integer("version", low=1),
        client=fields.line("client", max_chars=_MAX_NAME_CHARS),
        key=fields.text_or_none("key", max_chars=_MAX_NAME_CHARS),
        app=fields.line_or_none("app", max_chars=_MAX_NAME_CHARS),
    )


def _request(fields: Fields) -> Request:
    return Request(
        id=fields.integer("id", low=0),
        op=fields.text("op", max_chars=_MAX_NAME_CHARS),
        params=fields.mapping("params"),
    )


def _cancel(fields: Fields) -> Cancel:
    return Cancel(id=fields.integer("id", low=0))


def _welcome(fields: Fields) -> Welcome:
    return Welcome(
        version=fields.integer("version", low=1),
        server=fields.text("server"),
        principal=fields.text("principal"),
        limits=fields.mapping("limits"),
    )


def _event(fields: Fields) -> Event:
    return Event(
        id=fields.integer("id", low=0), kind=fields.text("kind"), data=fields.mapping("data")
    )


def _delta(fields: Fields) -> Delta:
    return Delta(
        id=fields.integer("id", low=0),
        index=fields.integer("index", low=0),
        text=fields.text("text") if fields.has("text") else "",
        token_ids=decode_token_ids(fields),
        embedding=fields.binary_or_none("embedding"),
        logprobs=decode_logprobs(fields),
        reasoning=fields.text_or_none("reasoning"),
        tool_calls=decode_tool_calls(fields) if fields.has("tool_calls") else None,
    )


def _done(fields: Fields) -> Done:
    return Done(id=fields.integer("id", low=0), result=fields.mapping("result"))


def _error(fields: Fields) -> Error:
    return Error(
        id=fields.integer_or_none("id", low=0),
        code=fields.text("code"),
        kind=fields.text("kind"),
        message=fields.text("message"),
        hint=fields.text("hint") if fields.has("hint") else "",
        retry_after_s=fields.number_or_none("retry_after_s", low=0, high=LONGEST_S),
    )


def _goaway(fields: Fields) -> Goaway:
    return Goaway(reason=fields.text("reason"))


_CLIENT_DECODERS: Final[dict[str, Callable[[Fields], ClientMessage]]] = {
    Hello.type: _hello,
    Request.type: _request,
    Cancel.type: _cancel,
}
_SERVER_DECODERS: Final[dict[str, Callable[[Fields], ServerMessage]]] = {
    Welcome.type: _welcome,
    Event.type: _event,
    Delta.type: _delta,
    Done.type: _done,
    Error.type: _error,
    Goaway.type: _goaway,
}
