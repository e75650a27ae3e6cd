"""`openclawctl top` against a scripted daemon: once, as JSON, and on a terminal."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest
from cli.conftest import PROGRAM
from cli.test_terminal import TIMEOUT_S, Terminal

from openclawctl.cli.shell import table_lines
from openclawctl.wire.errors import Unavailable


def request_row(number, principal, state, tokens=0, **more):
    return {
        "request_id": f"01a2-{number}",
        "principal": principal,
        "app": "job",
        "model": "smollm2",
        "state": state,
        "position": None,
        "completion_tokens": tokens,
        "max_tokens": 100,
        "age_s": 2.0,
        **more,
    }


STATUS = {
    "server": {"version": "9.9", "state": "ready", "uptime_s": 300},
    "requests": {
        "running": 2,
        "queued": 1,
        "open": [
            request_row(1, "user:alice", "running", 10),
            request_row(2, "user:bob", "running", 20),
            request_row(3, "user:bob", "queued", position=1),
        ],
    },
    "tokens": {"per_s": 45.24},
    "health": {"reasons": [{"message": "model x: failed: no file"}]},
    "models": [
        {
            "name": "smollm2",
            "state": "loading",
            "busy": 2,
            "slots": 8,
            "queued": 1,
            "queue": {"normal": {"eta_s": 3.0}},
            "tokens_per_s": 45.2,
            "memory_bytes": 2**28,
            "loading": {"phase": "weights", "fraction": 0.25},
        }
    ],
    "gpus": [{"index": 0, "name": "H", "memory_bytes": 2**30, "used_bytes": 2**29, "busy": 0.5}],
}

VIEW = [
    "openclawd 9.9, ready for 5m: 2 running, 1 queued, 45.2 tokens/s",
    "! model x: failed: no file",
    "GPU 0 H: 512.0 MiB of 1.0 GiB, 50% busy",
    "",
    "MODEL STATE SLOTS QUEUED WAIT TOK/S MEMORY NOTE",
    "smollm2 loading 2/8 1 3.0s 45.2 256.0 MiB weights 25%",
    "",
    "WHO RUNNING WAITING TOKENS TOK/S",
    "user:alice 1 0 10 0.0",
    "user:bob 1 1 20 0.0",
    "",
    "STATE PLACE TOKENS AGE PRINCIPAL APP MODEL ID",
    "running - 10/100 2.0s user:alice job smollm2 01a2-1",
    "running - 20/100 2.0s user:bob job smollm2 01a2-2",
    "queued 1 - 2.0s user:bob job smollm2 01a2-3",
]


@pytest.fixture
def daemon(peer):
    """Its running requests get 100 tokens more each time that somebody looks."""
    num_asked = 0

    def handler(connection, request):
        nonlocal num_asked
        rows = [
            {**row, "completion_tokens": row["completion_tokens"] + 100 * num_asked}
            if row["state"] == "running"
            else row
            for row in STATUS["requests"]["open"]
        ]
        num_asked += 1
        connection.done(request, **{**STATUS, "requests": {**STATUS["requests"], "open": rows}})

    return lambda: peer(handler=handler)


def test_once(daemon, ctl):
    running = daemon()
    answer = ctl("top", "--once")
    assert [" ".join(line.split()) for line in answer.out.splitlines()] == VIEW
    assert running.requests[0].params == {"requests": True}
    assert ctl("top").status == 0  # without a terminal it is once, too
    found = json.loads(ctl("top", "--once", "--json").out)
    assert [who["principal"] for who in found["principals"]] == ["user:alice", "user:bob"]
    assert found["tokens"] == STATUS["tokens"]


def test_as_json_until_ctrl_c(daemon):
    daemon()
    command = [*PROGRAM, "top", "--json", "--interval", "200ms"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first, second = (json.loads(process.stdout.readline())["principals"] for _ in range(2))
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 0
    assert [who["tokens_per_s"] for who in first] == [0.0, 0.0]
    for who in second:
        assert 10 < who["tokens_per_s"] <= 500


LEAVE_SCREEN = "\x1b[?1049l"


def test_on_a_terminal_until_q(daemon):
    daemon()
    with Terminal("top") as terminal:
        terminal.read_until("01a2-3")
        terminal.read_until("110/100")  # the second look
        terminal.type("q")
        text = terminal.read_to_end()
        assert terminal.process.wait(TIMEOUT_S) == 0
    assert LEAVE_SCREEN in text


def test_on_a_terminal_until_ctrl_c(daemon):
    daemon()
    with Terminal("top") as terminal:
        terminal.read_until("01a2-3")
        terminal.process.send_signal(signal.SIGINT)
        text = terminal.read_to_end()
        assert terminal.process.wait(TIMEOUT_S) == 0
    assert LEAVE_SCREEN in text
    assert "Traceback" not in text


def test_a_daemon_that_does_not_answer_for_a_while(peer):
    num_asked = 0

    def handler(connection, request):
        nonlocal num_asked
        num_asked += 1
        if num_asked == 2:
            connection.error(request, Unavailable("the disk is full"))
        else:
            connection.done(request, **STATUS)

    peer(handler=handler)
    with Terminal("top", "--interval", "200ms") as terminal:
        terminal.read_until("no answer, trying again: the disk is full")
        terminal.read_until("user:alice")
        terminal.type("q")
        terminal.read_to_end()
        assert terminal.process.wait(TIMEOUT_S) == 0


def test_the_daemon_is_not_there(ctl, monkeypatch):
    monkeypatch.setenv("OPENCLAWD_SOCKET", "/nonexistent/s")
    assert ctl("top").status == 3


def test_an_interval_that_is_none(ctl):
    assert ctl("top", "--interval", "often").status == 2


SPOILT = "job\nrunning\u202e9"
SHOWN = "job\ufffdrunning\ufffd9"


@pytest.fixture
def spoilt(peer):
    """Its only request has a label, and its health a sentence, of more than one line."""
    status = {
        **STATUS,
        "requests": {"open": [request_row(1, "user:eve", "running", app=SPOILT)]},
        "health": {"reasons": [{"message": SPOILT}]},
        "models": [],
    }
    peer(handler=lambda connection, request: connection.done(request, **status))


def test_no_label_forges_a_row(spoilt, ctl):
    lines = ctl("top", "--once").out.split("\n")
    assert lines[1] == f"! {SHOWN}"
    assert next(line for line in lines if "01a2-1" in line).split()[5] == SHOWN
    assert not [line for line in lines if line.startswith("running\u202e")]


def test_no_label_forges_a_row_on_a_terminal(spoilt):
    with Terminal("top", env={"COLUMNS": "120"}) as terminal:
        terminal.read_until(f"! {SHOWN}")
        terminal.read_until(SHOWN)
        terminal.read_until("01a2-1")
        terminal.type("q")
        terminal.read_to_end()


def test_a_table_in_a_narrow_terminal():
    header, rows = ["NAME", "ID", "N"], [["a-long-name-indeed", "01a2", "7"], ["b", "01a3", "12"]]
    assert table_lines(header, rows, right="N", cut="NAME", width=20) == [
        "NAME        ID     N",
        "a-long-na…  01a2   7",
        "b           01a3  12",
    ]
    assert table_lines(header, rows, right="N", cut="NAME", width=3)[1] == "a-long-…  01a2   7"
    assert table_lines(header, rows, right="N", cut="NAME") == table_lines(header, rows, right="N")


def test_a_view_that_is_higher_than_the_terminal(daemon):
    daemon()
    with Terminal("top", env={"LINES": "9"}) as terminal:
        terminal.read_until("… 7 more lines")
        terminal.type("q")
        assert terminal.process.wait(TIMEOUT_S) == 0
