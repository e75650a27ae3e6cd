"""Tables on a terminal of 80 columns and in a pipe, where all that may be long is."""

from __future__ import annotations

import pytest
from cli.test_terminal import Terminal

from openclawctl import ModelFailed
from openclawctl.cli.shell import table_lines

NAME = "meta-llama-3.1-8b-instruct-finetuned-on-tickets"
WHO = "user:wilhelmina.featherstonehaugh"
REASON = "its file is shorter than its header says: 3.1 GiB of 4.2 GiB are missing"
AT = 1_796_000_000

MODEL = {
    "name": NAME,
    "backend": "llama",
    "state": "ready",
    "devices": ["cuda:0"],
    "memory_bytes": 24 * 2**30,
    "context": 131_072,
    "parallel": 16,
    "slots": 16,
    "busy": 12,
    "queued": 3,
    "tokens_per_s": 123.4,
    "idle_s": 312,
    "expires_in_s": 1488,
    "aliases": ["assistant-for-support", "default-of-the-shop"],
    "reason": REASON,
    "info": {"parameters": 8_030_261_248, "size_bytes": 2**33},
    "queue": {"normal": {"eta_s": 12.3}},
}
TIMES = {"count": 12_345, "mean_s": 1.25, "p50_s": 0.0123, "p90_s": 95.5, "p99_s": 312}
LATENCY = {"window_s": 300, "relative_error": 0.02} | {
    name: {"recent": TIMES, "all": TIMES} for name in ("ttft", "inter_token", "total")
}
MEMORY = {
    "total_bytes": 2**34,
    "parts": [{"name": "weights", "num_bytes": 2**33, "device": "cuda:0", "how": REASON}] * 2,
}
USAGE = {
    "requests": 12_345,
    "prompt_tokens": 123_456_789,
    "cached_tokens": 12_345_678,
    "completion_tokens": 1_234_567,
    "cancelled": 12,
    "failed": 3,
    "total_s": 90_000,
}
AUDITED = {
    "seq": 123_456,
    "at": AT,
    "principal": WHO,
    "action": "refused",
    "model": NAME,
    "code": "over-budget",
    "tokens": 1234,
    "detail": {"limit": "nightly jobs of everybody", "asked": 5000},
}
KEY = {
    "name": "nightly-backups-of-the-whole-office",
    "prefixes": ["ocl_abcdefgh", "ocl_ijklmnop"],
    "state": "valid",
    "role": "operator",
    "tier": "interactive",
    "models": [NAME, "smol*"],
    "expires_at": None,
    "last_used_at": 1,
}
BUDGET = {
    "name": "nightly jobs of everybody",
    "bucket": WHO,
    "resets_at": AT,
    "tokens": {"used": 12_345, "reserved": 100, "left": 7655, "limit": 20_000, "forecast": 15_000},
}
FORECAST = {
    "budgets": [{**BUDGET, "tokens": {"left": 123_456, "left_after": 123_000}}],
}
TREND = {
    "principal": WHO,
    "model": NAME,
    "days": 30,
    "tokens": 12_345,
    "tokens_per_day": 411,
    "change_per_week": 0.12,
    "forecasts": [],
}
STATUS = {"models": [MODEL | {"latency": LATENCY}], "health": {"status": "ok"}}

TABLES = {
    "status": STATUS,
    "status --latency": STATUS,
    "ls": {"models": [MODEL]},
    "ps": {"models": [MODEL]},
    "show": {"model": {"name": "m", "state": "ready"}, "memory": MEMORY},
    "usage": {"rows": [{"groups": {"model": NAME}, **USAGE}]},
    "usage --by day,model": {"rows": [{"groups": {"day": "2026-11-30", "model": NAME}}]},
    "audit": {"rows": [AUDITED]},
    "keys list": {"keys": [KEY]},
    "budgets": {"budgets": [BUDGET]},
    "insights": {"trends": [TREND]},
    "generate --dry-run x": FORECAST,
}


def answer(result):
    return lambda connection, request: connection.done(request, **result)


@pytest.mark.parametrize("command", TABLES)
def test_a_table_fits_a_terminal_and_is_whole_in_a_pipe(peer, ctl, command):
    peer(handler=answer(TABLES[command]))
    with Terminal(*command.split(), env={"COLUMNS": "80"}) as terminal:
        shown = terminal.read_to_end().splitlines()
    piped = ctl(*command.split()).out
    assert any("…" in line for line in shown)
    sentence = "all models together"  # of `show`, below its table
    assert max(len(line) for line in shown if not line.startswith(sentence)) <= 80
    assert max(map(len, piped.splitlines())) > 80
    assert [word for word in piped.split() if word.endswith("…")] == (
        ["ocl_ijklmnop…"] if command == "keys list" else []
    )


def test_the_answers_of_a_deep_check_fit(peer, ctl):
    def handler(connection, request):
        if request.op == "status":
            connection.done(request, **STATUS)
        else:
            connection.error(request, ModelFailed(REASON * 2))

    peer(handler=handler)
    with Terminal("health", "--deep", env={"COLUMNS": "80"}) as terminal:
        shown = terminal.read_to_end().splitlines()
    assert max(map(len, shown)) <= 80
    assert REASON * 2 in ctl("health", "--deep").out


def test_one_space_is_between_columns_only_where_that_makes_them_fit():
    table = ["NAME", "N", "M"], [["a-long-name", "123", "456"]]
    assert table_lines(*table, cut="NAME", width=18)[1] == "a-long-…  123  456"
    assert table_lines(*table, cut="NAME", width=17)[1] == "a-long-n… 123 456"
    assert table_lines(*table, cut="NAME", width=16)[1] == "a-long-… 123 456"
    assert table_lines(*table, cut="NAME", width=15)[1] == "a-long-…  123  456"
