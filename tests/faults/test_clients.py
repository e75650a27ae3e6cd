"""Clients that vanish, stall, flood or speak nonsense: the daemon and its other clients go on."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgpack
import psutil
import pytest
from harness import RawClient, running_daemon, smollm2_path, wait_until

from openclawctl import Client
from openclawctl.wire.connection import Connection, Role
from openclawctl.wire.framing import MAX_FRAME_BYTES, encode_frame
from openclawctl.wire.messages import (
    Cancel,
    Delta,
    Done,
    Error,
    Event,
    Hello,
    Request,
    Welcome,
    encode,
)

if TYPE_CHECKING:
    from pathlib import Path

    from harness import Daemon


def busy(client: Client) -> int:
    return int(client.status()["models"][0]["busy"])


def steps(client: Client) -> int:
    """Steps the model's engine has computed. It computes none when idle."""
    return int(client.status()["models"][0]["steps"])


def completion_tokens(daemon: Daemon) -> list[int]:
    """Of every cancelled request in the ledger."""
    database = sqlite3.connect(daemon.state_dir / "ledger.sqlite3")
    rows = database.execute(
        "SELECT number FROM tokens JOIN requests USING (request_id)"
        " WHERE kind = 'completion' AND state = 'cancelled'"
    ).fetchall()
    database.close()
    return [row[0] for row in rows]


def test_a_client_that_vanishes_frees_its_slot_within_two_steps(own_daemon: Daemon) -> None:
    with Client(socket_path=str(own_daemon.socket)) as watcher:
        watcher.status()
        raw = RawClient(own_daemon.socket)
        raw.request(1, "generate", prompt="Count: 1 2 3", max_tokens=1000, stream=True)
        received = 0
        while received < 3:
            received += len(raw.next_of(Delta).token_ids)
        raw.socket.close()
        wait_until(lambda: busy(watcher) == 0, what="the free slot")
        wait_until(lambda: completion_tokens(own_daemon), what="the ledger's row")
        (computed,) = completion_tokens(own_daemon)
        assert received <= computed <= received + 2


CLIENT_PROGRAM = """
import sys
from openclawctl import Client
with Client(socket_path=sys.argv[1]) as client:
    with client.generate("Count: 1 2 3", max_tokens=1000, stream=True) as stream:
        for delta in stream:
            print(len(delta.token_ids), flush=True)
"""


def test_a_killed_client_process_is_noticed(own_daemon: Daemon) -> None:
    program = [sys.executable, "-c", CLIENT_PROGRAM, str(own_daemon.socket)]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with Client(socket_path=str(own_daemon.socket)) as watcher:
            steps_before = steps(watcher)
            process.send_signal(signal.SIGKILL)
            wait_until(lambda: busy(watcher) == 0, what="the free slot")
            # The step that is running, the one that ends it, and one that may have begun between
            # our question and the kill.
            assert steps(watcher) - steps_before <= 3
    assert len(completion_tokens(own_daemon)) == 1


def test_a_cancel_gives_the_partial_result_with_exact_usage(daemon: Daemon) -> None:
    with RawClient(daemon.socket) as raw:
        raw.request(1, "generate", prompt="Count: 1 2 3", max_tokens=1000, stream=True)
        first = raw.next_of(Delta)
        raw.send(Cancel(1))
        num_tokens = len(first.token_ids)
        while not isinstance(message := raw.next(), Done):
            assert isinstance(message, Delta)
            num_tokens += len(message.token_ids)
        (choice,) = message.result["choices"]
        assert choice["finish_reason"] == "cancelled"
        assert message.result["usage"]["completion_tokens"] == num_tokens


def test_a_cancel_while_waiting_ends_with_the_cancelled_error(own_daemon: Daemon) -> None:
    with RawClient(own_daemon.socket) as raw:
        for number in range(9):
            raw.request(number, "generate", prompt=f"{number}", max_tokens=1000, stream=True)
        event = raw.next_of(Delta)
        raw.send(Cancel(8))
        error = raw.next_of(Error, 8)
        assert error.code == "cancelled"
        assert event.id != 8


@pytest.mark.parametrize("op", ["generate", "ping"])
def test_a_cancel_in_the_same_write_as_its_request_is_answered(daemon: Daemon, op: str) -> None:
    with RawClient(daemon.socket, timeout_s=10) as raw:
        params = {"prompt": "hi"} if op == "generate" else {}
        request = raw.connection.send(Request(1, op, params))
        raw.socket.sendall(request + raw.connection.send(Cancel(1)))
        assert raw.next_of(Error, 1).code == "cancelled"
        raw.request(1, "ping")  # the id is free again
        raw.next_of(Done, 1)


def test_a_client_that_says_no_more_gets_what_was_answered_by_then(daemon: Daemon) -> None:
    with RawClient(daemon.socket) as raw:
        raw.request(1, "ping")
        raw.socket.shutdown(socket.SHUT_WR)
        assert raw.next_of(Done, 1).result["server"].startswith("openclawd")


def test_a_client_that_never_reads_disturbs_nobody(own_daemon: Daemon) -> None:
    with Client(socket_path=str(own_daemon.socket)) as other:
        other.status()
        before = own_daemon.pss_bytes()
        with RawClient(own_daemon.socket) as raw:
            raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for number in range(200):
                raw.request(number, "models")
            for number in range(200, 204):
                raw.request(number, "generate", prompt="x", max_tokens=200, stream=True)
            assert other.generate("Hello", max_tokens=8).usage.completion_tokens > 0
            assert own_daemon.pss_bytes() - before < 8 * 2**20
        wait_until(lambda: busy(other) == 0, what="the end of its requests")


def test_a_client_that_reads_late_gets_all_of_it_in_fewer_deltas(own_daemon: Daemon) -> None:
    """Half a megabyte of probabilities, more than socket and buffer hold."""
    read_late(own_daemon)


def test_what_waits_for_a_client_may_be_more_than_a_frame(folder: Path) -> None:
    """Of each choice there are some 120 KiB to send, and the smallest frames."""
    config = folder / "c.yaml"
    model = {"path": str(smollm2_path()), "preload": True, "required": True}
    limits = {"max_frame_bytes": "64KiB"}
    config.write_text(json.dumps({"models": {"smollm2": model}, "resource_limits": limits}))
    with running_daemon("--config", str(config), folder=folder) as daemon:
        daemon.wait_ready()
        read_late(daemon, max_tokens=160)


def read_late(daemon: Daemon, max_tokens: int = 64) -> None:
    """A client reads nothing before its request has been computed, and then all that it gets."""
    options = {"max_tokens": max_tokens, "ignore_eos": True, "logprobs": True, "top_logprobs": 20}
    with RawClient(daemon.socket) as raw, Client(socket_path=str(daemon.socket)) as watcher:
        raw.request(1, "generate", prompt="Once", n=8, stream=True, **options)
        wait_until(lambda: busy(watcher), what="the start")
        wait_until(lambda: not busy(watcher), what="the end")
        deltas = []
        while not isinstance(message := raw.next_of_any(Delta, Done), Done):
            deltas.append(message)
        raw.request(2, "ping")
        assert raw.next_of_any(Done, Error).type == "done"
    assert len(deltas) < 8 * max_tokens
    for index in range(8):
        mine = [delta for delta in deltas if delta.index == index]
        ids = [token for delta in mine for token in delta.token_ids]
        records = [record for delta in mine for record in delta.logprobs or ()]
        assert [record.token_id for record in records] == ids
        assert ids == message.result["choices"][index]["token_ids"]
        assert "".join(delta.text for delta in mine) == message.result["choices"][index]["text"]


def test_what_a_client_adds_to_a_request_is_not_kept_while_it_is_open(own_daemon: Daemon) -> None:
    filler = "x" * (8 * 2**20)
    with RawClient(own_daemon.socket) as raw:
        raw.request(1, "ping", filler=filler)
        raw.next_of(Done, 1)
        before = own_daemon.pss_bytes()
        for number in range(2, 10):
            raw.request(number, "watch", filler=filler)
            raw.next_of(Event, number)
        assert own_daemon.pss_bytes() - before < 16 * 2**20


def test_what_a_client_adds_to_a_request_never_reaches_the_worker(daemon: Daemon) -> None:
    """Packed by the daemon, small floats take twice the room they took in the client's frame."""
    pids = [worker.pid for worker in daemon.workers()]
    floats = (
        b"\xdd" + struct.pack(">I", 60_000) + msgpack.packb(0.5, use_single_float=True) * 60_000
    )
    rest = {"prompt": "hi", "max_tokens": 1, "filler": "x" * (MAX_FRAME_BYTES - len(floats) - 200)}
    with RawClient(daemon.socket) as raw:
        raw.connection.send(Request(1, "generate", {}))  # for its id: the frame is made by hand
        params = b"\x84" + b"".join(map(msgpack.packb, chain(*rest.items(), ["floats"]))) + floats
        head = {"type": "request", "id": 1, "op": "generate"}
        body = b"\x84" + b"".join(map(msgpack.packb, chain(*head.items(), ["params"]))) + params
        raw.socket.sendall(frame(body))
        assert raw.next_of_any(Done, Error).type == "done"
    assert [worker.pid for worker in daemon.workers()] == pids


def test_the_worker_takes_whatever_frame_the_configuration_allows(folder: Path) -> None:
    config = folder / "c.yaml"
    model = {"path": str(smollm2_path()), "preload": True}
    limits = {"max_frame_bytes": "64MiB"}
    config.write_text(json.dumps({"models": {"smollm2": model}, "resource_limits": limits}))
    with running_daemon("--config", str(config), folder=folder) as daemon:
        daemon.wait_ready()
        with RawClient(daemon.socket) as raw:
            raw.connection = Connection(Role.CLIENT, max_frame_bytes=2**26)
            raw.connection.send(Hello(version=1, client="test"))
            raw.connection.receive(encode_frame(encode(Welcome(1, "test", "test", {}))))
            next(raw.connection.events())
            raw.request(1, "tokenize", text="x" * 2**25)
            assert raw.next_of(Error, 1).code == "limit-exceeded"


def test_two_hundred_connections(own_daemon: Daemon) -> None:
    peers = [RawClient(own_daemon.socket) for _ in range(200)]
    try:
        for peer in peers:
            peer.request(1, "ping")
        for peer in peers:
            peer.next_of(Done, 1)
        for peer in peers:
            peer.request(2, "generate", prompt="a", max_tokens=1)
        for peer in peers:
            peer.next_of(Done, 2)
    finally:
        for peer in peers:
            peer.socket.close()
    with Client(socket_path=str(own_daemon.socket)) as client:
        wait_until(lambda: client.status()["connections"]["open"] == 1, what="the clean-up")
        assert client.status()["requests"]["finished"] == 200


def test_too_many_requests_on_one_connection_are_refused_one_by_one(daemon: Daemon) -> None:
    with RawClient(daemon.socket) as raw:
        for number in range(300):
            raw.request(number, "generate", prompt="x", max_tokens=1)
        ends = [raw.next_of_any(Done, Error) for _ in range(300)]
        refused = [end for end in ends if isinstance(end, Error)]
        assert refused
        assert {error.code for error in refused} == {"overloaded"}
        assert all(error.retry_after_s for error in refused)


# ---- nonsense ----


def frame(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


HELLO = frame(msgpack.packb({"type": "hello", "version": 1, "client": "fuzz"}))
REQUEST = frame(msgpack.packb({"type": "request", "id": 1, "op": "ping", "params": {}}))


def hostile_bytes(random_: random.Random) -> bytes:
    """One connection's worth of nonsense."""
    kind = random_.randrange(8)
    prefix = HELLO if random_.random() < 0.5 else b""
    if kind == 0:
        return prefix + random_.randbytes(random_.randrange(1, 200))
    if kind == 1:
        return prefix + frame(random_.randbytes(random_.randrange(1, 2000)))
    if kind == 2:
        return prefix + struct.pack(">I", random_.randrange(2**24 + 1, 2**32)) + b"x" * 10
    if kind == 3:
        return prefix + REQUEST[: random_.randrange(1, len(REQUEST))]
    if kind == 4:
        depth = random_.randrange(33, 20_000)
        return prefix + frame(b"\x81\xa4type" + b"\x91" * depth + b"\xc0")
    if kind == 5:
        header = random_.choice([b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"])
        return prefix + frame(b"\x81\xa4type" + header * random_.randrange(1, 500))
    if kind == 6:
        mutated = bytearray(HELLO + REQUEST)
        for _ in range(random_.randrange(1, 6)):
            mutated[random_.randrange(len(mutated))] = random_.randrange(256)
        return bytes(mutated)
    return prefix + struct.pack(">I", 0) + REQUEST


def attack(path: Path, data: bytes) -> bool:
    """Send it and read until the daemon closes. Was it answered with a protocol error? It may also
    be closed without a word (a cut frame), or be valid by chance."""
    received = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(30)
        sock.connect(str(path))
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while chunk := sock.recv(65536):
                received += chunk
        except (BrokenPipeError, ConnectionResetError):
            pass  # it closed before we had said everything
    fatal = [m["code"] for m in messages_in(received) if m["type"] == "error" and "id" not in m]
    assert set(fatal) <= {"protocol-error", "unsupported"}, fatal
    return "protocol-error" in fatal


def messages_in(received: bytes) -> list[dict[str, Any]]:
    messages = []
    while received:
        (length,) = struct.unpack_from(">I", received)
        messages.append(msgpack.unpackb(received[4 : 4 + length]))
        received = received[4 + length :]
    return messages


@pytest.mark.timeout(240)
def test_ten_thousand_hostile_frames(own_daemon: Daemon) -> None:
    path, random_ = own_daemon.socket, random.Random(20_261_123)
    stop = threading.Event()
    failures: list[Exception] = []
    num_answers = 0

    def innocent() -> None:
        nonlocal num_answers
        try:
            with Client(socket_path=str(path)) as client:
                while not stop.is_set():
                    # Long answers, as each row of the ledger adds to SQLite's cache (2 MB at most).
                    assert client.generate("Hi", max_tokens=100).usage.completion_tokens > 0
                    num_answers += 1
        except Exception as error:
            failures.append(error)

    # What is allocated once is allocated now: of 60,000 frames the first 10,000 took 0.7 MB, the
    # others 8 KiB (measured 2026-11-23).
    for _ in range(10_000):
        attack(path, hostile_bytes(random_))
    bystander = threading.Thread(target=innocent)
    bystander.start()
    before = own_daemon.pss_bytes()
    num_refused = sum(attack(path, hostile_bytes(random_)) for _ in range(10_000))
    with Client(socket_path=str(path)) as client:
        wait_until(lambda: client.status()["connections"]["open"] <= 2, what="the clean-up")
    grown = own_daemon.pss_bytes() - before
    stop.set()
    bystander.join(30)
    assert not failures
    assert num_answers > 0
    assert num_refused > 5_000
    assert grown < 2**20, f"PSS grew by {grown} bytes"


@pytest.mark.parametrize(
    "data",
    [
        frame(b"\xc1"),
        frame(msgpack.packb({"type": "reqest"})),
        HELLO + HELLO,
        REQUEST,
        struct.pack(">I", 2**32 - 1),
        HELLO + frame(msgpack.packb({"type": "request", "id": "one", "op": "ping"})),
    ],
    ids=["not msgpack", "unknown type", "two hellos", "no hello", "huge", "bad id"],
)
def test_nonsense_is_answered_with_protocol_error_before_the_close(
    daemon: Daemon, data: bytes
) -> None:
    with RawClient(daemon.socket, hello=False) as raw:
        raw.socket.sendall(data)
        received = b""
        while chunk := raw.socket.recv(65536):
            received += chunk
    payloads = messages_in(received)
    assert payloads[-1]["type"] == "error"
    assert payloads[-1]["code"] == "protocol-error"
    assert payloads[-1].get("id") is None
    assert {payload["type"] for payload in payloads[:-1]} <= {Welcome.type}


def test_a_client_that_says_nothing_is_sent_away(folder: Path) -> None:
    config = folder / "c.yaml"
    config.write_text("resource_limits: {hello_timeout: 200ms}\n")
    with running_daemon("--config", str(config), folder=folder) as daemon:
        daemon.wait_ready()
        with RawClient(daemon.socket, hello=False) as raw:
            assert b"no `hello`" in raw.socket.recv(65536)
            assert raw.socket.recv(1) == b""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_stranger_is_refused_with_a_sentence(daemon: Daemon, folder: Path) -> None:
    path = folder / "s"
    os.link(daemon.socket, path)  # the daemon's own folder is closed to strangers
    folder.chmod(0o755)
    path.chmod(0o666)
    program = (
        "import os, socket, sys; os.setuid(65534);"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "s.send(bytes.fromhex(sys.argv[2])); print(s.recv(9999))"
    )
    command = [sys.executable, "-c", program, str(path), HELLO.hex()]
    answer = subprocess.run(command, capture_output=True, check=True, timeout=30)
    path.chmod(0o660)
    assert b"denied" in answer.stdout
    assert b"may not use this daemon" in answer.stdout


def test_descriptors_and_threads_do_not_grow(daemon: Daemon) -> None:
    process = psutil.Process(daemon.pid)

    def visit() -> None:
        with Client(socket_path=str(daemon.socket)) as client:
            client.generate("x", max_tokens=1)
            client.usage()

    for _ in range(3):
        visit()
    wait_until(lambda: process.num_fds() > 0)
    before = process.num_fds(), process.num_threads()
    for _ in range(20):
        visit()
    wait_until(lambda: process.num_fds() <= before[0], what="closed descriptors")
    assert process.num_threads() <= before[1]
