"""The tiny HTTP server: what it answers, and what hostile clients get."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openclawd.observe import http
from openclawd.observe.http import MAX_CONNECTIONS, MAX_HEAD_BYTES, HttpServer, Response


def _bug():
    raise RuntimeError("a bug")


ROUTES = {"/a": lambda: Response(200, b"hello\n"), "/bug": _bug}


@pytest.fixture
def served(folder):
    """`served(talk)` runs `talk(path)` beside a server."""

    def run(talk):
        async def serve():
            server = HttpServer(ROUTES)
            path = folder / "h.sock"
            path.unlink(missing_ok=True)
            listener = await asyncio.get_running_loop().create_unix_server(server.connect, path)
            try:
                return await talk(path)
            finally:
                listener.close()
                server.close()
                await asyncio.sleep(0)  # the transports close on the loop

        return asyncio.run(serve())

    return run


async def ask(path, *pieces):
    """Everything that comes back for these bytes, sent one after the other."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def status_of(answer):
    return int(answer.split(b" ")[1])


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET /a HTTP/1.0\r\n\r\n", 200),
        (b"GET /a?x=1 HTTP/1.1\r\n\r\n", 200),
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
        (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"GET http://host/a HTTP/1.1\r\n\r\n", 404),
        (b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"GET /a\r\n\r\n", 400),
        (b"GET  /a HTTP/1.1\r\n\r\n", 400),
        (b"GET /a HTTP/2\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"\x16\x03\x01 hello tls \r\n\r\n", 400),
        (b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET /a HTTP/1.1\r\nX: " + b"y" * 2 * MAX_HEAD_BYTES, 431),
        (b"GET /bug HTTP/1.1\r\n\r\n", 500),
    ],
)
def test_each_request_gets_one_answer(served, request_head, status):
    answer = served(lambda path: ask(path, request_head))
    assert status_of(answer) == status
    head, body = answer.split(b"\r\n\r\n", 1)
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"Connection: close" in head


def test_a_head_has_no_body(served):
    answer = served(lambda path: ask(path, b"HEAD /a HTTP/1.1\r\n\r\n"))
    assert b"Content-Length: 6\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_in_pieces(served):
    pieces = [bytes([byte]) for byte in b"GET /a HTTP/1.1\r\n\r\n"]
    assert served(lambda path: ask(path, *pieces)).endswith(b"\r\n\r\nhello\n")


def test_a_second_request_is_not_answered(served):
    request = b"GET /a HTTP/1.1\r\n\r\n"
    assert served(lambda path: ask(path, request + request)).count(b"200 OK") == 1


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_get_an_answer_or_an_end(served, data):
    answer = served(lambda path: ask(path, data + b"\r\n\r\n"))
    assert status_of(answer) in (200, 400, 404, 405)


def test_who_says_nothing_is_cut_off(served, monkeypatch):
    monkeypatch.setattr(http, "TIMEOUT_S", 0.01)
    assert status_of(served(lambda path: ask(path, b"GET /a"))) == 408


def test_too_many_at_once(served):
    async def crowd(path):
        held = [await asyncio.open_unix_connection(path) for _ in range(MAX_CONNECTIONS)]
        refused = await ask(path)
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
        return refused, await ask(path, b"GET /a HTTP/1.1\r\n\r\n")

    refused, served_later = served(crowd)
    assert (status_of(refused), status_of(served_later)) == (503, 200)
