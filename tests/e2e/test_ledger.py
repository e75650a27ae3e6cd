"""Prices, reports and upkeep of a real daemon: what a request costs is what its counts say."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from harness import running_daemon, smollm2_path

from openclawctl import Client
from openclawd.admission.prices import Price
from openclawd.ledger.history import peak, read_history

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness import Daemon

PRICE = Price(prompt=100_000_000, cached=10_000_000, completion=400_000_000)
CONFIG = """
currency: EUR
models: {{m: {{path: {path}}}}}
prices: {{m: {{prompt: "100", cached: "10", completion: "400"}}}}
ledger: {{keep_usage: 30d}}
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    config = tmp_path_factory.mktemp("prices") / "c.yaml"
    config.write_text(CONFIG.format(path=smollm2_path()))
    with running_daemon("--config", str(config)) as daemon:
        daemon.wait_ready()
        yield daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(socket_path=str(daemon.socket), app="=cmd") as client:
        yield client


def test_a_request_costs_what_its_counts_say(client: Client, daemon: Daemon) -> None:
    before = client.usage(by="app,model")["total"]["cost"]
    prompt = "The capital of France is the city of " * 60
    results = [client.generate(prompt, max_tokens=5, ignore_eos=True) for _ in range(2)]
    costs = [
        PRICE.cost(
            result.usage.prompt_tokens, result.usage.cached_tokens, result.usage.completion_tokens
        )
        for result in results
    ]
    assert costs[1] < costs[0]  # much of the second prompt was cached
    usage = client.usage(by="app,model", since="1h")
    assert usage["total"]["cost"] - before == sum(costs)
    assert usage["currency"] == "EUR"
    assert {row["groups"]["app"] for row in usage["rows"]} == {"=cmd"}
    rows = client.usage_rows()["rows"][-2:]
    assert [row["cost"] for row in rows] == costs
    assert all(row["cost"] <= row["reserved_cost"] for row in rows)
    assert [row["request_id"] for row in rows] == [result.request_id for result in results]
    events = list(read_history(daemon.state_dir / "ledger.sqlite3"))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert peak(events) >= sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows)


def test_check_backup_and_prune(client: Client, daemon: Daemon) -> None:
    client.generate("Hello", max_tokens=1)
    assert client.check_ledger()["findings"] == []
    backup = client.back_up_ledger()
    file = _only(daemon.state_dir / "backups")
    assert backup["path"] == str(file)
    assert backup["bytes"] == file.stat().st_size
    assert client.prune_ledger("1h")["rows"] == 0
    assert client.prune_ledger(0)["rows"] >= 1
    assert client.usage()["rows"] == []
    assert client.check_ledger() == {
        "findings": [], "rows": 0, "open": 0, "seq": client.usage_rows()["last_seq"],
        "bytes": os.stat(daemon.state_dir / "ledger.sqlite3").st_size,
    }  # fmt: skip


def _only(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file
