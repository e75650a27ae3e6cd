"""`openclawctl health` and `status --latency` against a scripted daemon."""

from __future__ import annotations

import json

import pytest

from openclawctl.wire.errors import Denied, ModelFailed
from openclawctl.wire.messages import Delta

TIMES = {"count": 3, "mean_s": 0.0123, "p50_s": 0.012, "p90_s": 1.5, "p99_s": 70.0}
NOTHING = {"count": 0, "mean_s": None, "p50_s": None, "p90_s": None, "p99_s": None}
LATENCY = {
    **{name: {"recent": NOTHING, "all": TIMES} for name in ("ttft", "inter_token", "total")},
    "window_s": 300.0,
    "relative_error": 0.0524,
}
MODELS = [
    {"name": "writer", "state": "ready", "info": {"can_generate": True}, "latency": LATENCY},
    {"name": "encoder", "state": "ready", "info": {"can_generate": False}, "latency": None},
    {"name": "cold", "state": "unloaded", "info": {}},
]
OK = {"status": "ok", "server": "ready", "reasons": []}
STALLED = {
    "status": "failing",
    "server": "ready",
    "reasons": [{"model": "writer", "message": "model writer: its worker has said nothing"}],
}


@pytest.fixture
def daemon(peer, wire):
    """A daemon of this health, which computes unless it is given a problem."""

    def start(health=OK, *, problem=None):
        def handler(connection, request):
            if request.op == "status":
                connection.done(request, health=health, models=MODELS)
            elif problem is not None:
                connection.error(request, problem)
            elif request.op == "embed":
                connection.send(Delta(request.id, 0, embedding=wire.vector(1.0)))
                connection.done(request, **wire.result("", op="embed"))
            else:
                connection.complete(request, "!")

        return peer(handler=handler)

    return start


def test_all_is_well(daemon, ctl):
    daemon()
    assert ctl("health") == (0, "ok (openclawd is ready)\n", "")
    assert json.loads(ctl("health", "--json").out) == {**OK, "ok": True}


def test_something_is_wrong(daemon, ctl):
    daemon(STALLED)
    answer = ctl("health")
    assert answer.status == 1
    assert answer.out.splitlines() == [
        "failing (openclawd is ready)",
        "  model writer: its worker has said nothing",
    ]
    assert "  health       failing: model writer: its worker has said nothing" in (
        ctl("status").out.splitlines()
    )


def test_a_deep_check_asks_each_loaded_model_for_the_least(daemon, ctl):
    running = daemon()
    answer = ctl("health", "--deep", "--deadline", "3s")
    assert answer.status == 0
    assert [line.split()[:2] for line in answer.out.splitlines()[2:]] == [
        ["MODEL", "ANSWER"],
        ["writer", "ok"],
        ["encoder", "ok"],
    ]
    asked = {request.op: request.params for request in running.requests[1:]}
    assert asked["generate"]["max_tokens"] == 1
    assert asked["generate"]["deadline_s"] == pytest.approx(3)
    assert {params["app"] for params in asked.values()} == {"openclawctl-health"}


def test_a_deep_check_of_a_model_that_fails(daemon, ctl):
    daemon(problem=ModelFailed("it does not work"))
    answer = ctl("health", "--deep", "--json")
    assert answer.status == 1
    found = json.loads(answer.out)
    assert (found["ok"], found["status"]) == (False, "ok")
    assert found["models"][0]["code"] == "model-failed"


def test_who_may_not_compute_cannot_check(daemon, ctl):
    daemon(problem=Denied("you may not"))
    answer = ctl("health", "--deep")
    assert (answer.status, answer.out) == (5, "")


def test_a_deadline_that_is_none(daemon, ctl):
    daemon()
    assert ctl("health", "--deep", "--deadline", "soon").status == 2


def test_latency(daemon, ctl):
    running = daemon()
    lines = ctl("status", "--latency").out.splitlines()
    assert running.requests[0].params == {"latency": True}
    since = lines.index("since the start:")
    assert lines[lines.index("last 5m:") + 2].split() == (
        ["writer", "to", "first", "token", "0", "-", "-", "-", "-"]
    )
    assert [line.split() for line in lines[since + 1 : since + 3]] == [
        ["MODEL", "TIME", "COUNT", "MEAN", "P50", "P90", "P99"],
        ["writer", "to", "first", "token", "3", "12.3ms", "12ms", "1.5s", "1m", "10s"],
    ]
    assert lines[-1] == "Means are exact; percentiles are within 5.2%."


def test_latency_before_anything_was_asked(peer, ctl):
    peer(handler=lambda connection, request: connection.done(request, models=MODELS[1:]))
    assert "no request has ended" in ctl("status", "--latency").out
