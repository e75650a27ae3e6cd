"""`openclawctl requests` against a scripted daemon."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest
from cli.conftest import PROGRAM

from openclawctl.wire.errors import NotFound

RUNNING = {
    "request_id": "01a2-run",
    "principal": "user:alice",
    "app": "openclawctl",
    "model": "smollm2",
    "state": "running",
    "position": None,
    "eta_s": None,
    "completion_tokens": 17,
    "max_tokens": 256,
    "age_s": 3.21,
}
QUEUED = {
    **RUNNING,
    "request_id": "01a2-wait",
    "app": "",
    "state": "queued",
    "position": 2,
    "eta_s": 12.0,
    "completion_tokens": 0,
    "age_s": 0.5,
}


@pytest.fixture
def daemon(peer):
    def start(*rows, left_out=0):
        def handler(connection, request):
            if request.op == "status":
                requests = {"running": 1, "open": list(rows), "left_out": left_out}
                connection.done(request, requests=requests)
            elif request.params["request_id"] == "01a2-run":
                connection.done(request, **RUNNING)
            else:
                connection.error(request, NotFound("there is no open request"))

        return peer(handler=handler)

    return start


def test_what_runs_and_what_waits(daemon, ctl):
    running = daemon(RUNNING, QUEUED, left_out=3)
    answer = ctl("requests")
    assert running.requests[0].params == {"requests": True}
    assert [" ".join(line.split()) for line in answer.out.splitlines()] == [
        "ID PRINCIPAL APP MODEL STATE PLACE WAIT TOKENS AGE",
        "01a2-run user:alice openclawctl smollm2 running - - 17/256 3.2s",
        "01a2-wait user:alice - smollm2 queued 2 12.0s - 500ms",
        "and 3 more",
    ]
    assert json.loads(ctl("requests", "--json").out) == {"open": [RUNNING, QUEUED], "left_out": 3}


def test_nothing_is_open(daemon, ctl):
    daemon()
    assert ctl("requests") == (0, "no open requests\n", "")


def test_following_until_ctrl_c(daemon):
    daemon(RUNNING)
    with subprocess.Popen(
        [*PROGRAM, "requests", "--follow", "--json"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(2):
            assert json.loads(process.stdout.readline())["open"] == [RUNNING]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_cancelling(daemon, ctl):
    daemon()
    answer = ctl("requests", "cancel", "01a2-run")
    assert answer.out == ("01a2-run of user:alice is cancelled; it was running, with 17 tokens\n")
    assert json.loads(ctl("requests", "cancel", "01a2-run", "--json").out) == RUNNING
    assert ctl("requests", "cancel", "01a2-other").status == 4


def test_a_request_that_somebody_else_cancelled(peer, ctl):
    peer(
        handler=lambda connection, request: connection.complete(
            request, "Once", finish_reason="cancelled"
        )
    )
    for command in (["generate", "x"], ["chat"]):
        answer = ctl(*command, stdin="x" if command == ["chat"] else "")
        assert (answer.status, answer.out) == (130, "Once\n")
        assert "cancelled by somebody else" in answer.err
