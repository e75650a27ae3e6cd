"""Metrics, health and latency of a real daemon: under load, with a stopped worker, at its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from harness import running_daemon, smollm2_path, wait_until
from scrape import get, metrics_socket, scrape, sum_by

from openclawctl import Client
from openclawctl.wire.errors import LimitExceeded, NotFound
from openclawd.observe import message_ids

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness import Daemon

CONFIG = """
models:
  a: {{path: {path}, preload: true, parallel: 4, speculation: {{method: ngram}}}}
  b: {{path: {path}}}
default_model: a
tiers: {{default: {{}}, gold: {{weight: 2}}}}
prices: {{a: {{prompt: "100", completion: "400"}}}}
budgets:
  - {{name: each, per: principal, tokens: 100000}}
limits:
  - {{name: small, match: {{app: small}}, max_completion_tokens: 4}}
resource_limits: {{step_timeout: 12s}}
"""
LONG = "The capital of France is the city of " * 60
TOKENS = ("prompt", "cached", "completion")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    config = tmp_path_factory.mktemp("monitoring") / "c.yaml"
    config.write_text(CONFIG.format(path=smollm2_path()))
    with running_daemon("--config", str(config)) as daemon:
        yield daemon.wait_ready()


def openclawctl(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "openclawctl", "--socket", str(daemon.socket), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def one(client: Client, number: int) -> None:
    """One request of eight kinds."""
    match number % 8:
        case 0:
            client.generate(LONG, max_tokens=12, temperature=0, ignore_eos=True)  # guesses itself
        case 1:
            with client.generate("Count:", max_tokens=100, ignore_eos=True, stream=True) as stream:
                for _ in zip(range(3), stream, strict=False):
                    pass  # leaving early cancels it
        case 2:
            with pytest.raises(LimitExceeded):
                client.generate("Hello", max_tokens=5, app="small")
        case 3:
            client.generate("A name for a cat:", n=3, max_tokens=5)
        case 4:
            client.embed(["one", "two"])
        case 5:
            with pytest.raises(NotFound):
                client.generate("Hello", model="nothing")
        case 6:
            client.chat([{"role": "user", "content": "Say a b c a b c a b c"}], max_tokens=12)
        case _:
            client.generate("Hello", max_tokens=8, session=str(number))


@pytest.fixture(scope="module")
def load(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each kind of request by four clients, two of them with a key of another tier."""
    key = tmp_path_factory.mktemp("keys") / "key"
    key.touch(0o600)
    with Client(daemon.socket) as admin:
        key.write_text(admin.create_key("shop", role="user", tier="gold")["secret"])

    def work(number: int) -> None:
        with Client(daemon.socket, api_key_file=key if number % 2 else None) as client:
            for each in range(8):
                one(client, each + number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    with Client(daemon.socket) as admin:
        wait_until(lambda: not admin.status()["requests"]["running"], what="the cancelled ones")


def usage(daemon: Daemon, by: str) -> dict[tuple[str, ...], dict[str, int]]:
    with Client(daemon.socket) as admin:
        rows = admin.usage(by=by)["rows"]
    return {tuple(row["groups"][name] for name in by.split(",")): row for row in rows}


def test_under_load_they_agree_with_the_ledger_to_the_token(daemon: Daemon, load: None) -> None:
    samples, ledger = scrape(daemon), usage(daemon, "model,tier")
    assert set(ledger) == {("a", "default"), ("a", "gold")}
    for kind in TOKENS:
        counted = sum_by(samples, f"openclawd_{kind}_tokens_total", "model", "tier")
        assert counted == {who: row[f"{kind}_tokens"] for who, row in ledger.items()}
    counted = sum_by(samples, "openclawd_requests_total", "model", "tier")
    assert counted == {who: row["requests"] for who, row in ledger.items()}
    by_outcome = sum_by(samples, "openclawd_requests_total", "outcome")
    rows = ledger.values()
    assert by_outcome["cancelled",] == sum(row["cancelled"] for row in rows) > 0
    refused = sum(value for (outcome,), value in by_outcome.items() if outcome == "limit")
    assert refused == sum(row["failed"] for row in rows) == 4
    cost = sum_by(samples, "openclawd_cost_total")[()]
    assert round(cost * 1e6) == sum(row["cost"] for row in rows) > 0


def test_principals_count_by_their_class(daemon: Daemon, load: None) -> None:
    counted = sum_by(scrape(daemon), "openclawd_completion_tokens_total", "principal_class")
    by_principal = usage(daemon, "principal")
    by_key = by_principal["key:shop",]["completion_tokens"]
    others = sum(row["completion_tokens"] for row in by_principal.values()) - by_key
    assert counted == {("key",): by_key, ("user",): others}


def test_each_request_is_in_the_histograms_once(daemon: Daemon, load: None) -> None:
    samples, (row,) = scrape(daemon), usage(daemon, "model").values()
    for name in ("e2e_request_latency", "request_queue_time"):
        assert samples[f"openclawd_{name}_seconds_count"] == {
            frozenset({("model", "a")}): row["requests"]
        }
    first = sum_by(samples, "openclawd_time_to_first_token_seconds_count")[()]
    assert first == row["requests"] - row["failed"]
    between = sum_by(samples, "openclawd_inter_token_latency_seconds_count")[()]
    assert 0 < between < row["completion_tokens"]


def test_what_has_no_row_counts_as_an_error_without_a_model(daemon: Daemon, load: None) -> None:
    errors = sum_by(scrape(daemon), "openclawd_errors_total", "model", "code", "kind")
    assert errors["", "not-found", "request"] == 4
    assert errors["a", "limit-exceeded", "limit"] == 4


def test_the_rest_of_what_there_is(daemon: Daemon, load: None) -> None:
    samples = scrape(daemon)
    assert sum_by(samples, "openclawd_model_state", "model", "state") == {
        ("a", "ready"): 1,
        ("b", "unloaded"): 1,
    }
    assert sum_by(samples, "openclawd_num_requests_running", "model") == {}
    assert sum_by(samples, "openclawd_slots", "model")["a",] == 4
    assert sum_by(samples, "openclawd_worker_starts_total", "model") == {("a",): 1}
    assert sum_by(samples, "openclawd_model_load_seconds", "model")["a",] > 0
    assert sum_by(samples, "openclawd_worker_resident_memory_bytes", "model")["a",] > 2**20
    assert sum_by(samples, "openclawd_steps_total", "model")["a",] > 10
    assert sum_by(samples, "openclawd_prefix_hits_total", "model")["a",] > 0
    assert sum_by(samples, "openclawd_speculation_proposed_tokens_total", "model")["a",] > 0
    used = sum_by(samples, "openclawd_budget_used", "budget", "measure")["each", "tokens"]
    assert sum_by(samples, "openclawd_budget_used_ratio", "budget")["each",] == used / 100_000
    assert sum_by(samples, "openclawd_budget_buckets", "budget")["each",] == 2
    assert sum_by(samples, "openclawd_socket_received_bytes_total")[()] > 4 * len(LONG)
    assert sum_by(samples, "process_resident_memory_bytes")[()] > 2**20
    build = dict(next(iter(samples["openclawd_build_info"])))
    assert build["version"]
    assert build["llama_cpp_python"]


def test_the_socket_is_for_the_same_people_as_the_daemons(daemon: Daemon) -> None:
    mine, other = metrics_socket(daemon).stat(), daemon.socket.stat()
    assert oct(mine.st_mode) == oct(other.st_mode)
    assert (mine.st_uid, mine.st_gid) == (other.st_uid, other.st_gid)


def test_latency_on_the_command_line(daemon: Daemon, load: None) -> None:
    said = openclawctl(daemon, "status", "--latency")
    assert said.returncode == 0, said.stderr
    assert "since the start:" in said.stdout
    assert [line.split()[0] for line in said.stdout.splitlines() if "between tokens" in line]
    with Client(daemon.socket) as client:
        models = {row["name"]: row for row in client.status(latency=True)["models"]}
        assert "latency" not in client.status()["models"][0]
    assert models["b"]["latency"] is None
    times = models["a"]["latency"]["ttft"]["all"]
    assert times["count"] > 0
    assert 0 < times["p50_s"] <= times["p90_s"] <= times["p99_s"]


def test_health_when_all_is_well(daemon: Daemon, load: None) -> None:
    wait_until(lambda: get(metrics_socket(daemon), "/health")[0] == 200, what="health")
    deep = openclawctl(daemon, "health", "--deep", "--deadline", "60s", "--json")
    assert deep.returncode == 0, deep.stdout
    found = json.loads(deep.stdout)
    assert (found["status"], [each["name"] for each in found["models"]]) == ("ok", ["a"])
    assert usage(daemon, "app")["openclawctl-health",]["completion_tokens"] == 1


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_health_says_that_a_worker_is_stuck_and_that_it_is_back(daemon: Daemon) -> None:
    path = metrics_socket(daemon)
    with Client(daemon.socket) as client:
        pid = next(row["worker_pid"] for row in client.status()["models"] if row["name"] == "a")
        with client.generate("Count:", max_tokens=20, ignore_eos=True, stream=True) as stream:
            next(stream)
            with stopped(pid):
                wait_until(lambda: get(path, "/health")[0] == 503, what="a stall")
                report = json.loads(get(path, "/health")[1])
                assert report["status"] == "failing"
                assert report["reasons"][0]["model"] == "a"
                assert f"pid {pid}" in report["reasons"][0]["message"]
                wait_until(
                    lambda: sum_by(scrape(daemon), "openclawd_model_stalled_seconds", "model"),
                    what="the metric",
                )
                deep = openclawctl(daemon, "health", "--deep", "--deadline", "200ms")
                assert deep.returncode == 1
                assert "failing" in deep.stdout
                assert "deadline-exceeded" in deep.stdout
            assert sum(len(delta.token_ids) for delta in stream) > 0
    wait_until(lambda: get(path, "/health")[0] == 200, what="health after the stall")
    assert sum_by(scrape(daemon), "openclawd_healthy")[()] == 1


def test_a_model_that_cannot_be_loaded_is_no_reason_to_leave_a_balancer(folder: Path) -> None:
    config = folder / "c.yaml"
    (folder / "broken.gguf").write_bytes(b"GGUF and nothing more")
    config.write_text(
        f"models:\n  bad: {{path: {folder}/broken.gguf, preload: true}}\n"
        f"  good: {{path: {smollm2_path()}}}\ndefault_model: good\n"
    )
    with running_daemon("--config", str(config), folder=folder) as daemon:
        daemon.wait_ready()
        status, body = get(metrics_socket(daemon), "/health")
        assert (status, json.loads(body)["status"]) == (200, "degraded")
        said = openclawctl(daemon, "health")
        assert (said.returncode, said.stdout.split()[0]) == (1, "degraded")
        assert "model bad: failed" in said.stdout
        samples = scrape(daemon)
        assert sum_by(samples, "openclawd_worker_exits_total", "model", "cause") == {
            ("bad", "load_failed"): 1
        }
        assert daemon.terminate() == 0
        assert not metrics_socket(daemon).exists()


def test_without_metrics_there_is_no_socket(folder: Path) -> None:
    config = folder / "c.yaml"
    config.write_text("monitoring: {metrics: false}\n")
    with running_daemon("--config", str(config), folder=folder) as daemon:
        daemon.wait_ready()
        assert not metrics_socket(daemon).exists()
        assert message_ids.READY not in daemon.log()  # ids are for the journal alone
