"""Both clients against daemons that are silent, cut, wrong or gone: a sentence, never a hang."""

from __future__ import annotations

import asyncio
import os
import socket
import struct

import pytest

from openclawctl import (
    AsyncClient,
    Client,
    ConnectionLost,
    DaemonUnreachable,
    Denied,
    OpenclawError,
    ProtocolError,
    calls,
)
from openclawctl.wire.framing import encode_frame
from openclawctl.wire.messages import Event, Welcome


def ask_blocking(path):
    with Client(path, retries=0) as client:
        return client.generate("x").text


def ask_async(path):
    async def ask():
        async with AsyncClient(path, retries=0) as client:
            return (await client.generate("x")).text

    return asyncio.run(ask())


ask = pytest.mark.parametrize("ask", [ask_blocking, ask_async])


def silent(connection):
    connection.next()
    while connection.sock.recv(65536):
        pass


def closes_at_once(connection):
    connection.sock.close()


def closes_before_the_answer(connection):
    connection.greet()
    connection.request()


def closes_midway(connection):
    connection.greet()
    connection.delta(connection.request(), "half")


def cuts_a_frame(connection):
    connection.greet()
    connection.request()
    connection.raw(struct.pack(">I", 100) + b"abc")


def talks_http(connection):
    connection.raw(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    connection.next()


def sends_an_oversized_frame(connection):
    connection.greet()
    connection.raw(struct.pack(">I", 2**31))
    connection.next()


def answers_what_was_not_asked(connection):
    connection.greet()
    request = connection.request()
    connection.raw(encode_frame({"type": "done", "id": request.id + 77, "result": {}}))
    connection.next()


def speaks_another_version(connection):
    connection.next()
    connection.send(Welcome(2, "openclawd 20", "p"))
    connection.next()


def sends_no_answer_in_its_result(connection):
    connection.greet()
    connection.done(connection.request(), answer=42)


def denies_the_key(connection):
    connection.next()
    connection.error(None, Denied("this API key is unknown", hint="see openclawctl key list"))


@ask
@pytest.mark.parametrize(
    ("script", "error", "text"),
    [
        (closes_at_once, ConnectionLost, "lost while 'generate' was waiting for its first answer"),
        (closes_before_the_answer, ConnectionLost, "waiting for its first answer"),
        (closes_midway, ConnectionLost, "lost while 'generate' was running"),
        (cuts_a_frame, ConnectionLost, "ended inside a frame"),
        (talks_http, ProtocolError, "does not keep to the protocol"),
        (sends_an_oversized_frame, ProtocolError, "a frame declares 2147483648 bytes"),
        (answers_what_was_not_asked, ProtocolError, "which is not open"),
        (speaks_another_version, ProtocolError, "speaks protocol version 2, this client 1"),
        (sends_no_answer_in_its_result, ProtocolError, "request_id"),
        (denies_the_key, Denied, "this API key is unknown"),
    ],
)
def test_each_failure_has_its_sentence(peer, ask, script, error, text):
    with pytest.raises(error, match=text):
        ask(peer(script).path)


@ask
def test_daemon_that_never_greets_is_given_up(peer, ask, monkeypatch):
    monkeypatch.setattr(calls, "GREETING_TIMEOUT_S", 0.05)
    daemon = peer(silent)
    with pytest.raises(DaemonUnreachable, match=r"has not answered within 0.05 s") as caught:
        ask(daemon.path)
    assert str(daemon.path) in caught.value.message
    assert caught.value.exit_status == 3


@ask
def test_what_a_later_daemon_says_is_passed_over(peer, ask):
    def script(connection):
        connection.greet()
        request = connection.request()
        connection.raw(encode_frame({"type": "weather", "temperature": 21}))
        connection.send(Event(request.id, "tool-call", {"x": 1}))
        connection.complete(request, "fine")

    assert ask(peer(script).path) == "fine"


@ask
def test_one_byte_at_a_time(peer, ask, wire):
    def script(connection):
        connection.greet()
        request = connection.request()
        data = encode_frame({"type": "done", "id": request.id, "result": wire.result("slow")})
        for position in range(len(data)):
            connection.raw(data[position : position + 1])
        connection.next()

    assert ask(peer(script).path) == "slow"


@ask
def test_no_socket(tmp_path, ask):
    with pytest.raises(DaemonUnreachable, match="openclawd is not running") as caught:
        ask(tmp_path / "none.sock")
    assert "systemctl start openclawd" in caught.value.hint
    assert "openclawctl daemon start" in caught.value.hint


@ask
def test_stale_socket(tmp_path, ask):
    path = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    with pytest.raises(DaemonUnreachable, match=r"nothing listens on .*stale\.sock"):
        ask(path)


@ask
def test_what_is_no_socket_is_called_so(tmp_path, ask):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(DaemonUnreachable, match=f"{path} is no socket") as caught:
            ask(path)
        assert "--socket" in caught.value.hint


@ask
def test_socket_path_that_is_too_long(tmp_path, ask):
    with pytest.raises(DaemonUnreachable, match="too long"):
        ask(tmp_path / ("x" * 200))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use every socket")
@ask
def test_socket_of_others(peer, ask):
    daemon = peer(silent)
    daemon.path.chmod(0)
    with pytest.raises(DaemonUnreachable, match="no permission to use the socket") as caught:
        ask(daemon.path)
    assert "group" in caught.value.hint


def test_garbage_never_raises_anything_else(peer):
    """Whatever the bytes, the client ends with one of its own exceptions."""
    for seed in range(20):
        noise = bytes((seed * 7 + position * 13) % 256 for position in range(500))

        def script(connection, noise=noise):
            connection.next()
            connection.raw(noise)

        daemon = peer(script, name=f"{seed}.sock")
        with pytest.raises(OpenclawError):
            ask_blocking(daemon.path)
