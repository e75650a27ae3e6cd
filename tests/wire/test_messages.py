"""Every message survives the wire; whatever is not a message is a protocol error."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire.strategies import client_messages, json_values, server_messages

from openclawctl.wire.errors import (
    BusyProblem,
    Code,
    NotFound,
    Overloaded,
    RemoteProtocolError,
)
from openclawctl.wire.framing import decode_payload, encode_frame
from openclawctl.wire.messages import (
    MAX_ERROR_BYTES,
    Delta,
    Error,
    Hello,
    Welcome,
    decode_client_message,
    decode_server_message,
    encode,
)

CLIENT_TYPES = ["hello", "request", "cancel"]
SERVER_TYPES = ["welcome", "event", "delta", "done", "error", "goaway"]


@given(client_messages)
def test_client_messages_round_trip(message):
    assert decode_client_message(decode_payload(encode_frame(encode(message))[4:])) == message


@given(server_messages)
def test_server_messages_round_trip(message):
    assert decode_server_message(decode_payload(encode_frame(encode(message))[4:])) == message


@given(client_messages, st.text(), json_values)
def test_unknown_fields_are_ignored(message, name, value):
    fields = encode(message)
    fields.setdefault(f"x-{name}", value)
    assert decode_client_message(fields) == message


FIELD_NAMES = [
    *["id", "version", "client", "key", "app", "op", "params", "server", "principal", "limits"],
    *["kind", "data", "index", "text", "token_ids", "embedding", "result", "code", "message"],
    *["hint", "retry_after_s", "reason"],
]


@given(st.sampled_from(CLIENT_TYPES), st.dictionaries(st.sampled_from(FIELD_NAMES), json_values))
def test_odd_client_fields_give_a_message_or_a_protocol_error(name, fields):
    with contextlib.suppress(RemoteProtocolError):
        decode_client_message({"type": name, **fields})


@given(st.sampled_from(SERVER_TYPES), st.dictionaries(st.sampled_from(FIELD_NAMES), json_values))
def test_odd_server_fields_give_a_message_or_a_protocol_error(name, fields):
    with contextlib.suppress(RemoteProtocolError):
        decode_server_message({"type": name, **fields})


def test_fields_without_a_value_are_left_out():
    assert encode(Hello(1, "test")) == {"type": "hello", "version": 1, "client": "test"}
    assert "embedding" not in encode(Delta(1))


def test_fields_that_may_be_left_out():
    assert decode_server_message({"type": "delta", "id": 1, "index": 0}) == Delta(1)
    minimal = {"type": "welcome", "version": 1, "server": "s", "principal": "p"}
    assert decode_server_message(minimal) == Welcome(1, "s", "p", {})
    fatal = {"type": "error", "code": "denied", "kind": "denied", "message": "no"}
    assert decode_server_message(fatal) == Error(None, "denied", "denied", "no")


def test_the_daemon_refuses_unknown_types_and_the_client_ignores_them():
    with pytest.raises(RemoteProtocolError, match="unknown message type 'dance'"):
        decode_client_message({"type": "dance"})
    assert decode_server_message({"type": "dance", "id": 1}) is None


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({}, "message: 'type' is missing; it must be a string"),
        ({"type": 5}, "message: 'type' must be a string, not an integer"),
        ({"type": "x" * 300}, "message: 'type' has 300 characters; at most 256"),
        ({"type": "cancel"}, "message 'cancel': 'id' is missing; it must be an integer"),
        ({"type": "cancel", "id": -1}, "'id' is -1; allowed: 0 to 9223372036854775807"),
        ({"type": "cancel", "id": 2**63}, "'id' is 9223372036854775808; allowed: 0 to"),
        ({"type": "cancel", "id": True}, "'id' must be an integer, not true or false"),
        ({"type": "hello", "version": 0, "client": "c"}, "'version' is 0; allowed: 1 to"),
        ({"type": "hello", "version": 1, "client": "c" * 257}, "'client' has 257 characters"),
        ({"type": "request", "id": 1, "op": "o", "params": []}, "'params' must be a map"),
    ],
)
def test_what_is_wrong_is_said(payload, reason):
    with pytest.raises(RemoteProtocolError) as caught:
        decode_client_message(payload)
    assert reason in str(caught.value)


@pytest.mark.parametrize("name", ["client", "app"])
@pytest.mark.parametrize(
    "spoilt", ["x\nrow", "x\ty", "\x1b[31m", "\u202edlrow", "x\u2028y", "\x85"]
)
def test_what_would_forge_a_row_is_refused_in_a_hello(name, spoilt):
    """Both stand in tables, in the ledger and in the log, as a request's `app` does."""
    hello = {"type": "hello", "version": 1, "client": "c", name: spoilt}
    with pytest.raises(RemoteProtocolError, match=f"'{name}' must be one line of printable"):
        decode_client_message(hello)


def test_a_hello_may_have_no_names():
    """Clients that have no name to say send an empty one."""
    empty = {"type": "hello", "version": 1, "client": "", "app": ""}
    assert decode_client_message(empty) == Hello(1, "", app="")


def test_a_problem_crosses_the_wire():
    problem = Overloaded("the queue is full", hint="try later", retry_after_s=2.5)
    received = Error.from_problem(7, problem).to_problem()
    assert isinstance(received, Overloaded)
    assert (received.message, received.hint) == ("the queue is full", "try later")
    assert received.retry_after_s == 2.5
    assert str(received) == "the queue is full (try later)"


def test_a_code_of_a_later_version_is_its_kind():
    received = Error(1, "model-paging", "busy", "wait").to_problem()
    assert type(received) is BusyProblem
    assert received.code == "model-paging"
    assert received.retryable


def test_error_fields_left_out():
    fields = encode(Error.from_problem(None, NotFound("no model x")))
    assert fields == {
        "type": "error",
        "code": Code.NOT_FOUND.value,
        "kind": "request",
        "message": "no model x",
        "hint": "",
    }


def test_an_error_that_quotes_too_much_is_cut():
    problem = NotFound("no model " + "é" * MAX_ERROR_BYTES, hint="\ud800" + "x" * 9)
    error = Error.from_problem(1, problem)
    assert len(error.message.encode()) <= MAX_ERROR_BYTES + len("…".encode())
    assert error.message.endswith("é…")
    assert error.hint == "?" + "x" * 9
