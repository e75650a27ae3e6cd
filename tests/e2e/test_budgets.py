"""Budgets on a real daemon: a race for one, what is said of it, and what a crash leaves of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from typing import TYPE_CHECKING

import pytest
from harness import Daemon, running_daemon, smollm2_path, wait_until

from openclawctl import AsyncClient, Client
from openclawctl.wire.errors import BudgetExceeded
from openclawd.ledger.history import Kind, peak, read_history

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NUM_PRINCIPALS, CONNECTIONS_EACH, NUM_REQUESTS = 20, 4, 200
LIMIT = 3000


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Daemon]]:
    """Start a daemon with these budgets, again and again in one folder."""
    with contextlib.ExitStack() as stack:

        def start(*budgets: str) -> Daemon:
            config = folder / "openclawd.yaml"
            model = f"{{path: {smollm2_path()}, preload: true, parallel: 16}}"
            lines = "".join(f"  - {budget}\n" for budget in budgets)
            config.write_text(f"models:\n  smollm2: {model}\nbudgets:\n{lines}")
            running = running_daemon("--config", str(config), folder=folder)
            return stack.enter_context(running).wait_ready()

        yield start


def settled(daemon: Daemon) -> tuple[int, int]:
    """Tokens of all requests of the ledger, and of its one budget."""
    with contextlib.closing(sqlite3.connect(daemon.state_dir / "ledger.sqlite3")) as database:
        ((requests,),) = database.execute(
            "SELECT sum(number) FROM tokens WHERE kind IN ('prompt', 'completion')"
        )
        ((budget,),) = database.execute("SELECT sum(tokens) FROM budget_usage")
    return requests, budget


def test_200_at_once_use_nine_tenths_of_a_budget_and_not_one_token_more(
    start: Callable[..., Daemon], folder: Path
) -> None:
    """Twenty principals over four connections each. Answers end by themselves, at mixed lengths,
    long before their maximum; what the ledger says of every moment counts."""
    daemon = start(f"{{name: shared, tokens: {LIMIT}, max_wait: 5m}}")
    keys = [folder / f"key{number}" for number in range(NUM_PRINCIPALS)]
    with Client(daemon.socket) as admin:
        for key in keys:
            key.touch(0o600)
            key.write_text(admin.create_key(key.name, role="user")["secret"])

    results = asyncio.run(race(daemon, keys))

    used = [result for result in results if isinstance(result, int)]
    refusals = [result for result in results if isinstance(result, BudgetExceeded)]
    assert len(used) + len(refusals) == NUM_REQUESTS
    assert len(set(used)) > 3, "the answers have mixed lengths"
    assert refusals
    assert {r.code for r in refusals} == {"budget-exceeded"}
    assert all("budget shared: " in r.message for r in refusals)
    assert all("reset at " in r.message and r.retry_after_s for r in refusals)

    assert daemon.terminate() == 0
    events = list(read_history(daemon.state_dir / "ledger.sqlite3"))
    assert len({e.request_id for e in events}) == NUM_REQUESTS
    assert {e.principal for e in events} == {f"key:{key.name}" for key in keys}
    reserved = [e.tokens for e in events if e.kind is Kind.RESERVED and e.tokens]
    assert len(reserved) == len(used), "what is refused holds nothing"
    assert sum(reserved) > LIMIT, "else there was no race"
    assert peak(events) <= LIMIT
    assert 0.9 * LIMIT <= sum(used) <= LIMIT
    assert settled(daemon) == (sum(used), sum(used))


async def race(daemon: Daemon, keys: list[Path]) -> list[int | BudgetExceeded]:
    """All requests at once: tokens of those that were served, and refusals."""

    async def one(client: AsyncClient, number: int) -> int | BudgetExceeded:
        message = {"role": "user", "content": f"What is {number} plus {number % 7}? Be brief."}
        try:
            r = await client.chat([message], max_tokens=150, seed=number)
        except BudgetExceeded as refusal:
            return refusal
        return r.usage.total_tokens

    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(AsyncClient(daemon.socket, api_key_file=key, retries=0))
            for key in keys
            for _ in range(CONNECTIONS_EACH)
        ]
        requests = (one(clients[n % len(clients)], n) for n in range(NUM_REQUESTS))
        return await asyncio.gather(*requests)


def test_a_lower_maximum_is_said(start: Callable[..., Daemon]) -> None:
    daemon = start("{name: small, tokens: 60}")
    with Client(daemon.socket) as client:
        r = client.generate("The capital of France is", max_tokens=500)
        (warning,) = r.warnings
        assert warning["code"] == "max-tokens-lowered"
        assert r.context["max_tokens"] == 60 - r.usage.prompt_tokens
        assert r.usage.total_tokens <= 60
        (row,) = client.budgets()
        assert (row["name"], row["bucket"]) == ("small", "")
        assert row["tokens"]["used"] == r.usage.total_tokens
        assert row["tokens"]["reserved"] == 0


def test_a_cancelled_request_pays_for_what_was_computed(start: Callable[..., Daemon]) -> None:
    daemon = start("{name: b, tokens: 10000, per: app}")
    with Client(daemon.socket, app="web") as client:
        with client.generate("Count to a thousand: 1 2 3", max_tokens=1000, stream=True) as stream:
            for number, _ in enumerate(stream):
                if number == 3:
                    stream.cancel()
        usage = stream.result.usage
        (row,) = client.budgets()
        assert row["bucket"] == "web"
        assert (row["tokens"]["used"], row["tokens"]["reserved"]) == (usage.total_tokens, 0)


def test_a_crash_neither_frees_nor_locks_what_was_reserved(start: Callable[..., Daemon]) -> None:
    budget = "{name: b, tokens: 2000, on_short: reject}"
    daemon = start(budget)
    client = Client(daemon.socket, retries=0)
    with client.generate("Count to a thousand: 1 2 3", max_tokens=1000, stream=True) as stream:
        next(iter(stream))
        wait_until(lambda: settled_progress(daemon), what="the progress on disk")
        daemon.kill()
    client.close()
    daemon = start(budget)
    requests, used = settled(daemon)
    assert requests == used > 0
    with Client(daemon.socket) as client:
        (row,) = client.budgets()
        assert (row["tokens"]["used"], row["tokens"]["reserved"]) == (used, 0)


def settled_progress(daemon: Daemon) -> bool:
    with contextlib.closing(sqlite3.connect(daemon.state_dir / "ledger.sqlite3")) as database:
        return bool(database.execute("SELECT 1 FROM tokens WHERE kind = 'completion'").fetchone())


def test_used_up_is_refused_and_alerted_once_even_after_a_restart(
    start: Callable[..., Daemon],
) -> None:
    for _ in range(2):
        daemon = start("{name: tiny, tokens: 20}")
        with Client(daemon.socket, retries=0) as client:
            with contextlib.suppress(BudgetExceeded):
                client.generate("The capital of France is", max_tokens=50, min_tokens=10)
            with pytest.raises(BudgetExceeded, match="reset at"):
                client.generate("The capital of France is", max_tokens=50, min_tokens=10)
        assert daemon.terminate() == 0
    lines = [json.loads(line) for line in daemon.log().splitlines()]
    alerts = [line["share"] for line in lines if "share" in line]
    assert alerts == sorted(set(alerts))
    assert alerts[-1:] in ([0.8], [0.95], [1.0])
