"""A dry run says what a request would take, is refused as it would be, and takes nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from harness import running_daemon, short_folder, smollm2_path

from openclawctl import AsyncClient, BudgetExceeded, Client, LimitExceeded, PromptTooLong

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Daemon

    from openclawctl import Event

CONFIG = """
models:
  smollm2: {path: %s, preload: true, parallel: 2, context: 512}
currency: EUR
prices:
  smollm2: {prompt: "1.00", completion: "4.00"}
budgets:
  - {name: daily, per: principal, tokens: 1000, money: "5.00", window: day}
  - {name: tiny, match: {session: tiny}, tokens: 10, on_short: reject}
  - {name: short, match: {session: short}, tokens: 10}
rate_limits:
  - {name: calls, requests: 5, window: 1m}
  - {name: flow, tokens: 400, window: 1m}
limits:
  - {name: short, max_prompt_tokens: 100, max_queued: 5}
"""


@pytest.fixture(scope="module")
def priced() -> Iterator[Daemon]:
    """A daemon with a price and with limits of every sort."""
    with short_folder() as folder:
        config = folder / "c.yaml"
        config.write_text(CONFIG % smollm2_path())
        with running_daemon("--config", str(config), folder=folder) as daemon:
            yield daemon.wait_ready()


@pytest.fixture
def client(priced: Daemon) -> Iterator[Client]:
    with Client(priced.socket) as client:
        yield client


def test_what_it_would_take_and_what_would_be_left(client: Client) -> None:
    for _ in range(7):  # more often than the rate limit allows
        forecast = client.dry_run("The capital of France is", max_tokens=50, n=2)
    assert (forecast["model"], forecast["prompt_tokens"]) == ("smollm2", 5)
    assert forecast["completion_tokens"] == 100
    assert forecast["cost"] == {"currency": "EUR", "prompt": 5, "total": 405, "per_second": 0}
    assert forecast["limits"] == [
        {"name": "short", "per": "principal", "max_prompt_tokens": 100, "max_queued": 5}
    ]
    calls, flow = forecast["rate_limits"]
    assert (calls["rule"], calls["unit"], calls["used"], calls["limit"]) == (
        "calls",
        "requests",
        0,
        5,
    )
    assert (flow["unit"], flow["used"], flow["retry_after_s"]) == ("tokens", 0, 0)
    (daily,) = forecast["budgets"]
    assert (daily["name"], daily["bucket"]) == ("daily", "user:root")
    assert (daily["tokens"]["left"], daily["tokens"]["left_after"]) == (1000, 895)
    assert daily["money"]["left_after"] == 5_000_000 - 405
    assert forecast["queue"] == {"running": 0, "waiting": 0, "eta_s": 0.0}
    assert forecast["context"]["max_tokens"] == 50
    assert client.usage()["rows"] == []
    assert client.budgets()[0]["tokens"]["reserved"] == 0


def test_the_prompt_counts_as_in_a_chat_that_is_computed(client: Client, priced: Daemon) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    forecast = client.dry_run_chat(messages, max_tokens=1)

    async def ask() -> dict[str, object]:
        async with AsyncClient(priced.socket) as other:
            assert await other.dry_run("Hello", max_tokens=1)
            return await other.dry_run_chat(messages, max_tokens=1)

    assert asyncio.run(ask())["prompt_tokens"] == forecast["prompt_tokens"]
    assert client.chat(messages, max_tokens=1).usage.prompt_tokens == forecast["prompt_tokens"]


def test_a_budget_that_leaves_less_says_so(client: Client) -> None:
    heard: list[Event] = []
    forecast = client.dry_run("Hello", max_tokens=50, session="short", on_event=heard.append)
    assert forecast["completion_tokens"] == 10 - forecast["prompt_tokens"]
    assert [(event.kind, event.data["code"]) for event in heard] == [
        ("warning", "max-tokens-lowered")
    ]


def test_it_is_refused_for_what_the_request_would_be(client: Client) -> None:
    with pytest.raises(PromptTooLong, match="limit short allows 100"):
        client.dry_run("word " * 200)
    with pytest.raises(LimitExceeded, match="n is 3"):
        client.dry_run("Hello", n=3)
    with pytest.raises(BudgetExceeded, match="budget tiny: this request may need"):
        client.dry_run("Hello", max_tokens=50, session="tiny")
    assert client.dry_run("Hello", max_tokens=5, session="tiny")["completion_tokens"] == 5
