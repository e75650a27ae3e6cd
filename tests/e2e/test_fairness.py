"""Who is served on a real model when one asks for much and others for little."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest
from harness import Daemon, RawClient, running_daemon, smollm2_path

from openclawctl import AsyncClient, Client
from openclawctl.wire.messages import PROTOCOL_VERSION, Cancel, Delta, Done, Error, Hello, Welcome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PLACES = 4
TOKENS = 16
LONG = {"max_tokens": 100, "ignore_eos": True, "stream": True}


@pytest.fixture
def small(folder: Path) -> Iterator[Daemon]:
    """A model with few places."""
    config = folder / "c.yaml"
    config.write_text(
        f"models: {{m: {{path: {smollm2_path()}, preload: true, parallel: {PLACES}}}}}\n"
    )
    with running_daemon("--config", str(config), folder=folder) as daemon:
        yield daemon.wait_ready()


def key_of(daemon: Daemon, name: str) -> str:
    with Client(daemon.socket) as admin:
        return str(admin.create_key(name, role="user")["secret"])


def key_file(daemon: Daemon, name: str) -> Path:
    path = daemon.folder / f"{name}.key"
    path.write_text(key_of(daemon, name))
    path.chmod(0o600)
    return path


@contextlib.contextmanager
def client_of(daemon: Daemon, name: str) -> Iterator[RawClient]:
    """A caller of its own: by a key of this name."""
    with RawClient(daemon.socket, hello=False) as raw:
        raw.send(Hello(PROTOCOL_VERSION, client="test", key=key_of(daemon, name)))
        assert isinstance(raw.next(), Welcome)
        yield raw


def test_a_guest_takes_a_place_of_the_one_who_has_them_all(small: Daemon) -> None:
    """And the one that lost it goes on where it was."""
    with client_of(small, "crowd") as crowd, client_of(small, "guest") as guest:
        for number in range(PLACES + 3):
            crowd.request(number, "generate", prompt=f"Number {number}", **LONG)
        for number in range(PLACES):
            crowd.next_of(Delta, number)
        guest.request(1, "generate", prompt="Hello", max_tokens=TOKENS, ignore_eos=True)
        done = guest.next_of(Done, 1)
        assert done.result["usage"]["completion_tokens"] == TOKENS
        for number in range(PLACES, PLACES + 3):
            crowd.send(Cancel(number))
        answers: dict[int, list[int]] = {}
        results = {}
        cancelled = set()
        while len(results) + len(cancelled) < PLACES + 3:
            message = crowd.next_of_any(Delta, Done, Error)
            if isinstance(message, Delta):
                answers.setdefault(message.id, []).extend(message.token_ids)
            elif isinstance(message, Done):
                results[message.id] = message.result
            else:
                cancelled.add(message.id)
        for number in range(PLACES):
            assert results[number]["usage"]["completion_tokens"] == 100
            assert answers[number]
        assert cancelled == {PLACES, PLACES + 1, PLACES + 2}  # the guest waited for none of these
        assert not cancelled & set(answers)


def test_who_is_aside_when_the_worker_dies_goes_on_in_the_next_one(small: Daemon) -> None:
    with client_of(small, "crowd") as crowd, client_of(small, "guest") as guest:
        for number in range(PLACES):
            crowd.request(number, "generate", prompt=f"Number {number}", **LONG)
        for number in range(PLACES):
            crowd.next_of(Delta, number)
        guest.request(1, "generate", prompt="Hello", **LONG)
        guest.next_of(Delta, 1)
        (worker,) = small.workers()
        worker.kill()
        everybody = [guest.next_of(Done, 1)] + [crowd.next_of(Done) for _ in range(PLACES)]
        tokens = [done.result["usage"]["completion_tokens"] for done in everybody]
        assert tokens == [100] * (PLACES + 1)


def test_who_comes_later_gets_as_much(small: Daemon) -> None:
    """Of two who want all they can get, the second has its requests answered while the first has
    as many answered, give or take what is in the places, however long its queue was."""

    async def scenario() -> None:
        ended: list[str] = []
        async with (
            AsyncClient(small.socket, api_key_file=key_file(small, "first")) as first,
            AsyncClient(small.socket, api_key_file=key_file(small, "second")) as second,
        ):

            async def ask(client: AsyncClient, name: str, number: int) -> None:
                await client.generate(f"{name} {number}", max_tokens=TOKENS, ignore_eos=True)
                ended.append(name)

            crowd = [asyncio.create_task(ask(first, "first", number)) for number in range(40)]
            while len(ended) < PLACES:
                await asyncio.wait(crowd[: len(ended) + 1], return_when="FIRST_COMPLETED")
                await asyncio.sleep(0)
            before = ended.count("first")
            await asyncio.gather(*(ask(second, "second", number) for number in range(10)))
            meanwhile = ended.count("first") - before
            assert 10 - 2 * PLACES <= meanwhile <= 10 + 2 * PLACES
            for task in crowd:
                task.cancel()
            await asyncio.gather(*crowd, return_exceptions=True)

    asyncio.run(scenario())
