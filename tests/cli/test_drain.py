"""`openclawctl drain` and `resume` against a scripted daemon."""

from __future__ import annotations

import json
import signal
import subprocess

from cli.conftest import PROGRAM


def answers(state, num_open=0):
    def handler(connection, request):
        if request.op == "drain" and request.params.get("wait"):
            connection.event(request, "draining", open=2)
        connection.done(request, state=state, open=num_open)

    return handler


def test_drain_and_resume(peer, ctl):
    running = peer(handler=answers("draining", 2))
    assert ctl("drain").out == "draining: 2 requests are open, and no new ones are taken\n"
    assert json.loads(ctl("drain", "--json").out) == {"state": "draining", "open": 2}
    assert ctl("resume") == (0, "openclawd is draining\n", "")
    assert [request.op for request in running.requests] == ["drain", "drain", "resume"]


def test_waiting_until_nothing_is_open(peer, ctl):
    running = peer(handler=answers("drained"))
    answer = ctl("drain", "--wait")
    assert running.requests[0].params == {"wait": True}
    assert answer == (0, "drained: no request is open, and no new ones are taken\n", "")


def test_somebody_resumes_meanwhile(peer, ctl):
    peer(handler=answers("ready", 1))
    answer = ctl("drain", "--wait")
    assert answer.status == 1
    assert "resumed meanwhile" in answer.out


def test_ctrl_c_ends_the_wait_and_not_the_draining(peer):
    def handler(connection, request):
        process.send_signal(signal.SIGINT)
        connection.next()

    peer(handler=handler)
    with subprocess.Popen(
        [*PROGRAM, "drain", "--wait"], stderr=subprocess.PIPE, text=True
    ) as process:
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == "openclawctl: it goes on draining; `openclawctl resume` ends that\n"


def test_status_says_who_drained_it(peer, ctl):
    server = {"state": "drained", "drain": {"by": "user:root", "since": 0}}
    peer(handler=lambda connection, request: connection.done(request, server=server))
    (line,) = [line for line in ctl("status").out.splitlines() if "drained by" in line]
    assert "user:root since 19" in line
    assert "`openclawctl resume` takes requests again" in line
