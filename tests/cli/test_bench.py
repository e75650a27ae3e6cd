"""`openclawctl bench` against the real daemon, and what it says of disturbances."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawctl import Client
from openclawctl.cli.measuring import Round, Sample, _disturbances, _Surroundings, percentile
from openclawctl.results import Completion
from openclawctl.wire.errors import Overloaded
from openclawctl.wire.results import Choice, Timings, Usage


@pytest.fixture
def reached(daemon, monkeypatch):
    monkeypatch.setenv("OPENCLAWD_SOCKET", str(daemon.socket))
    return daemon


def test_what_is_measured(reached, ctl):
    with Client(reached.socket) as client:
        before = {row["key"]: row for row in client.usage(by=["app"])["rows"]}
        answer = ctl("bench", "--concurrency", "1,2", "--tokens", "8", "--rounds", "2", "--json")
        after = {row["key"]: row for row in client.usage(by=["app"])["rows"]}
    assert answer.status == 0, answer.err
    report = json.loads(answer.out)
    assert (report["model"], report["max_tokens"], report["rounds"]) == ("smollm2", 8, 2)
    one, two = report["results"]
    assert (one["concurrency"], one["requests"], one["completion_tokens"]) == (1, 2, 16)
    assert (two["concurrency"], two["requests"], two["completion_tokens"]) == (2, 4, 32)
    for figures in report["results"]:
        assert len(figures["tokens_per_s_rounds"]) == 2
        for name in ("ttft_s", "inter_token_s", "total_s"):
            assert 0 < figures[name]["p50"] <= figures[name]["p99"]
        assert figures["ttft_s"]["p50"] < figures["total_s"]["p50"]
    earlier = before.get("bench", {"requests": 0, "completion_tokens": 0})
    assert after["bench"]["requests"] - earlier["requests"] == 9  # a round to warm up each
    assert after["bench"]["completion_tokens"] - earlier["completion_tokens"] == 72


def test_as_a_table(reached, ctl):
    answer = ctl("bench", "--concurrency", "2", "--tokens", "4", "--rounds", "1")
    title, empty, header, row = answer.out.splitlines()
    assert title.startswith("smollm2 on openclawd ")
    assert title.endswith(": answers of 4 tokens, 1 rounds")
    assert empty == ""
    assert header.split() == ["REQUESTS", "TOK/S", "FIRST", "P99", "NEXT", "P99", "WHOLE", "P99"]
    assert row.split()[0] == "2"


@pytest.mark.parametrize("value", ["", "0", "1,,2", "a", "1,257", "-1"])
def test_a_wrong_list(ctl, value):
    answer = ctl("bench", "--concurrency", value)
    assert answer.status == 2
    assert "is not a list of numbers from 1 to 256, such as 1,2,4,8" in answer.err


def test_a_refusal_ends_it_and_is_not_tried_again(peer, ctl):
    asked = []

    def handler(connection, request):
        if request.op == "status":
            connection.done(request)
        else:
            asked.append(request.id)
            connection.error(request, Overloaded("the queue of smollm2 is full", retry_after_s=0.1))

    peer(handler=handler)
    answer = ctl("bench", "--concurrency", "1")
    assert (answer.status, answer.out) == (6, "")
    assert "the queue of smollm2 is full" in answer.err
    assert len(asked) == 1


# ---- figures and disturbances ----


@given(st.lists(st.floats(0, 1e6), min_size=1), st.sampled_from([0.5, 0.99]))
def test_a_percentile_is_a_value_that_was_measured(values, share):
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)


def test_percentiles():
    assert [percentile(range(1, 101), share) for share in (0.5, 0.99)] == [50, 99]
    assert [percentile([3.0, 1.0, 2.0], share) for share in (0.5, 0.99)] == [2.0, 3.0]


def surroundings(**changes):
    calm = {"version": "1", "finished": 10, "running": 0, "health": [], "load": 0.0}
    return _Surroundings(**{**calm, "cpu": (1000, 0), **changes})


def test_a_calm_machine():
    assert surroundings().disturbed(surroundings(finished=18, cpu=(2000, 10)), 8) == []


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({"running": 2}, {}, "2 requests of others were open when it began"),
        ({}, {"finished": 21}, "3 requests of others ended meanwhile"),
        ({"load": 1000.0}, {}, "the machine was busy before: load 1000.0 on"),
        ({}, {"cpu": (2000, 100)}, "the hypervisor took 10% of the CPU time"),
        ({}, {"health": ["memory is nearly used up"]}, "health: memory is nearly used up"),
    ],
)
def test_what_disturbed_it_from_outside(before, after, words):
    later = surroundings(**{"finished": 18, **after})
    (found,) = surroundings(**before).disturbed(later, 8)
    assert words in found


def round_of(total_s=1.0, *, finish_reason="length", cached=0, **timings):
    result = Completion(
        "id",
        "m",
        [Choice(0, finish_reason, text="x")],
        Usage(prompt_tokens=5, cached_tokens=cached, completion_tokens=8),
        Timings(**timings),
        warnings=[],
    )
    return Round(total_s, [Sample(0.1, total_s, [0.1], result)])


@pytest.mark.parametrize(
    ("rounds", "words"),
    [
        ([round_of(1.0), round_of(1.5)], "4 at once: the rounds differ by 50%"),
        ([round_of(queue_s=0.5)], "1 of 1 requests waited for a place, up to 0.5 s"),
        ([round_of(load_s=2.0)], "1 requests waited for the model to be loaded"),
        ([round_of(cached=3)], "3 prompt tokens came from the cache"),
        ([round_of(finish_reason="stop")], "1 answers ended early (stop)"),
    ],
)
def test_what_disturbed_it_inside(rounds, words):
    (found,) = _disturbances([(4, rounds)])
    assert words in found
    assert _disturbances([(4, [round_of(), round_of(1.1)])]) == []
