"""The order of messages: the state table, open requests, and that any bytes are survived."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire.strategies import requests, server_messages

from openclawctl.wire.connection import MAY_SEND, Connection, Role, State
from openclawctl.wire.errors import LocalProtocolError, RemoteProtocolError
from openclawctl.wire.framing import (
    HELLO_FRAME_BYTES,
    MAX_FRAME_BYTES,
    MOST_FRAME_BYTES,
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
    Request,
    Welcome,
    encode,
)

HELLO = Hello(1, "test")
WELCOME = Welcome(1, "openclawd test", "user:test")
FATAL = Error(None, "protocol-error", "bug", "no")


class ConnectionPair:
    """A client and a server; what one sends, the other receives at once."""

    def __init__(self):
        self.ends = {role: Connection(role) for role in Role}

    def send(self, role, *messages):
        """Send, and check that the other end gets just that."""
        other = self.ends[Role.CLIENT if role is Role.SERVER else Role.SERVER]
        data = b"".join(self.ends[role].send(message) for message in messages)
        other.receive(data)
        received = []
        for message in other.events():
            received.append(message)
            if isinstance(message, Hello):
                break  # the server answers before it goes on
        assert received == list(messages)[: len(received)]
        return received

    def client(self, *messages):
        return self.send(Role.CLIENT, *messages)

    def server(self, *messages):
        return self.send(Role.SERVER, *messages)


@pytest.fixture
def pair():
    return ConnectionPair()


@pytest.fixture
def open_pair(pair):
    pair.client(HELLO)
    pair.server(WELCOME)
    return pair


ANY_MESSAGE = {
    Hello: HELLO,
    Request: Request(2, "ping"),
    Cancel: Cancel(1),
    Welcome: WELCOME,
    Event: Event(1, "queued"),
    Delta: Delta(1),
    Done: Done(1),
    Error: Error(1, "internal", "bug", "no"),
    Goaway: Goaway("bye"),
}


def in_state(role, state):
    """A connection in this state, with request 1 open where requests can be."""
    connection = Connection(role)
    if role is Role.CLIENT:
        steps = [
            lambda: connection.send(HELLO),
            lambda: (connection.send(Request(1, "ping")), take(connection, WELCOME)),
        ]
    else:
        steps = [
            lambda: take(connection, HELLO),
            lambda: (connection.send(WELCOME), take(connection, Request(1, "ping"))),
        ]
    if state is State.CLOSED:
        take(connection, FATAL) if role is Role.CLIENT else connection.send(FATAL)
    else:
        for step in steps[: [State.NEW, State.GREETING, State.OPEN].index(state)]:
            step()
    assert connection.state is state
    return connection


def take(connection, message):
    connection.receive(encode_frame(encode(message)))
    return list(connection.events())


@pytest.mark.parametrize(
    ("named", "limit"),
    [
        (HELLO_FRAME_BYTES, HELLO_FRAME_BYTES),
        (2 * MAX_FRAME_BYTES, 2 * MAX_FRAME_BYTES),
        (None, MAX_FRAME_BYTES),
        (HELLO_FRAME_BYTES - 1, MAX_FRAME_BYTES),
        (MOST_FRAME_BYTES + 1, MAX_FRAME_BYTES),
        (1e6, MAX_FRAME_BYTES),
        (True, MAX_FRAME_BYTES),
    ],
)
def test_the_client_keeps_to_the_limit_that_welcome_names(named, limit):
    client = in_state(Role.CLIENT, State.GREETING)
    take(client, Welcome(1, "s", "p", {"max_frame_bytes": named}))
    room = limit - len(encode_frame(encode(Request(1, "x", {"a": ""})))) - 4
    assert client.send(Request(1, "x", {"a": "." * room}))
    with pytest.raises(LocalProtocolError, match=f"the frame limit of {limit} bytes"):
        client.send(Request(2, "x", {"a": "." * (room + 64)}))


CASES = [(*key, kind) for key in MAY_SEND for kind in ANY_MESSAGE]


@pytest.mark.parametrize(("role", "state", "kind"), CASES)
def test_what_may_be_sent(role, state, kind):
    connection = in_state(role, state)
    is_request_known = state is State.OPEN or kind in (Hello, Request, Cancel, Welcome, Goaway)
    if kind in MAY_SEND[role, state] and is_request_known:
        assert connection.send(ANY_MESSAGE[kind])
    else:
        with pytest.raises(LocalProtocolError):
            connection.send(ANY_MESSAGE[kind])


@pytest.mark.parametrize(("role", "state", "kind"), CASES)
def test_what_may_be_received(role, state, kind):
    """The peer's rows of the table, from the other side. A closed connection takes nothing."""
    receiver_role = Role.CLIENT if role is Role.SERVER else Role.SERVER
    connection = in_state(receiver_role, state)
    is_request_known = state is State.OPEN or kind in (Hello, Request, Cancel, Welcome, Goaway)
    is_for_this_role = (kind in (Hello, Request, Cancel)) is (role is Role.CLIENT)
    if state is State.CLOSED or (receiver_role is Role.SERVER and state is State.GREETING):
        assert take(connection, ANY_MESSAGE[kind]) == []
    elif kind in MAY_SEND[role, state] and is_request_known:
        assert take(connection, ANY_MESSAGE[kind]) == [ANY_MESSAGE[kind]]
    elif not is_for_this_role and receiver_role is Role.CLIENT:
        assert take(connection, ANY_MESSAGE[kind]) == []  # of a type clients do not know
    else:
        with pytest.raises(RemoteProtocolError):
            take(connection, ANY_MESSAGE[kind])
        assert connection.state is State.CLOSED


def test_a_whole_conversation(open_pair):
    open_pair.client(Request(1, "generate"), Request(2, "chat"))
    open_pair.server(Event(1, "started"), Delta(2, text="hi"), Delta(1), Done(2))
    open_pair.client(Cancel(1), Request(2, "ping"))
    open_pair.server(Done(1), Error(2, "not-found", "request", "no"), Goaway("bye"))
    for end in open_pair.ends.values():
        assert end.num_open == 0
        assert end.state is State.OPEN


def test_hello_and_the_first_requests_in_one_write(pair):
    """What follows hello waits for welcome, under the limit that holds from then on."""
    big = Request(1, "generate", {"prompt": "x" * HELLO_FRAME_BYTES})
    client, server = pair.ends[Role.CLIENT], pair.ends[Role.SERVER]
    server.receive(client.send(HELLO) + client.send(big) + client.send(Cancel(1)))
    events = server.events()
    assert next(events) == HELLO
    assert list(server.events()) == []
    server.send(WELCOME)
    assert list(server.events()) == [big, Cancel(1)]
    assert server.is_open(1)
    assert server.open_ids == {1}


def test_a_stranger_gets_no_more_than_the_small_limit(pair):
    server = pair.ends[Role.SERVER]
    server.receive((HELLO_FRAME_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(RemoteProtocolError, match="the limit is 65536 bytes"):
        list(server.events())


def test_an_id_may_be_used_again_after_its_end_only(open_pair):
    open_pair.client(Request(1, "ping"))
    with pytest.raises(LocalProtocolError, match="request id 1 is still open"):
        open_pair.ends[Role.CLIENT].send(Request(1, "ping"))
    server = open_pair.ends[Role.SERVER]
    with pytest.raises(RemoteProtocolError, match="request id 1 is still open"):
        take(server, Request(1, "ping"))


def test_a_cancel_that_crossed_the_end_is_ignored(open_pair):
    open_pair.client(Request(1, "ping"))
    server = open_pair.ends[Role.SERVER]
    server.send(Done(1))
    assert take(server, Cancel(1)) == []
    assert server.state is State.OPEN


def test_a_cancel_before_hello_is_not(pair):
    with pytest.raises(RemoteProtocolError, match="'cancel' is not allowed"):
        take(pair.ends[Role.SERVER], Cancel(1))


def test_types_of_a_later_daemon_are_skipped(open_pair):
    client = open_pair.ends[Role.CLIENT]
    client.receive(encode_frame({"type": "news", "id": 9}) + encode_frame(encode(Goaway("x"))))
    assert list(client.events()) == [Goaway("x")]


def test_a_closed_connection_takes_no_memory(open_pair):
    server = open_pair.ends[Role.SERVER]
    server.send(FATAL)
    server.receive(b"x" * 1000)
    assert server._reader.num_buffered_bytes == 0
    assert list(server.events()) == []


def test_a_clean_end(open_pair):
    open_pair.ends[Role.SERVER].receive_eof()
    assert open_pair.ends[Role.SERVER].state is State.CLOSED


def test_an_end_inside_a_frame(open_pair):
    server = open_pair.ends[Role.SERVER]
    server.receive(b"\0\0\0\x05ab")
    assert list(server.events()) == []
    with pytest.raises(RemoteProtocolError, match="inside a frame, 6 bytes into it"):
        server.receive_eof()


def test_an_end_after_a_protocol_error_is_not_reported_twice(open_pair):
    server = open_pair.ends[Role.SERVER]
    server.receive(b"\xff\xff\xff\xffrest")
    with pytest.raises(RemoteProtocolError):
        list(server.events())
    server.receive_eof()


def test_a_message_over_the_limit_changes_nothing(open_pair):
    client = Connection(Role.CLIENT, max_frame_bytes=100)
    client.send(HELLO)
    with pytest.raises(LocalProtocolError, match="over the frame limit"):
        client.send(Request(1, "generate", {"prompt": "x" * 200}))
    assert client.num_open == 0


# ---- properties ----


def serve(data, sizes):
    """What a server sees of these bytes in chunks of these sizes, and the error, if any."""
    server = Connection(Role.SERVER)
    seen = []
    try:
        for size in [*sizes, len(data)]:
            server.receive(data[:size])
            data = data[size:]
            for message in server.events():
                seen.append(message)
                if isinstance(message, Hello):
                    server.send(WELCOME)
        server.receive_eof()
    except RemoteProtocolError as error:
        seen.append(str(error))
    return seen


CONVERSATIONS = st.lists(requests, max_size=5, unique_by=lambda request: request.id).map(
    lambda rest: b"".join(encode_frame(encode(message)) for message in [HELLO, *rest])
)
CHUNKS = st.lists(st.integers(1, 60), max_size=40)


@given(CONVERSATIONS, CHUNKS)
def test_any_chunking_gives_the_same_events(data, sizes):
    assert serve(data, sizes) == serve(data, [])


@given(st.binary(max_size=300), CHUNKS)
def test_random_bytes_cause_nothing_but_a_protocol_error(data, sizes):
    assert serve(data, sizes) == serve(data, [])


@given(CONVERSATIONS, st.data(), CHUNKS)
def test_damaged_conversations_cause_nothing_but_a_protocol_error(data, draw, sizes):
    start = draw.draw(st.integers(0, len(data)))
    end = draw.draw(st.integers(start, min(start + 8, len(data))))
    damaged = data[:start] + draw.draw(st.binary(max_size=8)) + data[end:]
    assert serve(damaged, sizes) == serve(damaged, [])


@given(st.lists(server_messages, max_size=5), st.binary(max_size=30))
def test_a_client_survives_any_daemon(messages, junk):
    client = in_state(Role.CLIENT, State.OPEN)
    client.receive(b"".join(encode_frame(encode(message)) for message in messages) + junk)
    try:
        for _ in client.events():
            pass
        client.receive_eof()
    except RemoteProtocolError:
        assert client.state is State.CLOSED


@given(st.lists(st.tuples(st.sampled_from(["ask", "cancel", "delta", "end"]), st.integers(0, 3))))
def test_both_ends_always_agree_on_what_is_open(steps):
    pair = ConnectionPair()
    pair.client(HELLO)
    pair.server(WELCOME)
    client, server = pair.ends[Role.CLIENT], pair.ends[Role.SERVER]
    for step, number in steps:
        if step == "ask" and not client.is_open(number):
            pair.client(Request(number, "generate"))
        elif step == "cancel" and client.is_open(number):
            pair.client(Cancel(number))
        elif step == "delta" and client.is_open(number):
            pair.server(Delta(number))
        elif step == "end" and client.is_open(number):
            pair.server(Done(number))
        assert client.open_ids == server.open_ids


def test_what_a_message_takes_is_known_before_it_is_sent():
    connection = Connection(Role.CLIENT, max_frame_bytes=100)
    hello = Hello(version=1, client="test")
    assert connection.frame_bytes(hello) == len(connection.send(hello))
    with pytest.raises(LocalProtocolError):
        connection.frame_bytes(Hello(version=1, client="x" * connection.max_frame_bytes))
