"""Many clients at once on one warm model: they advance together, every token is accounted for."""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from openclawctl import Client

if TYPE_CHECKING:
    from harness import Daemon

    from openclawctl.results import Completion

NUM_CLIENTS = 8
MAX_TOKENS = 24
NEVER_END = {0: -1000.0, 2: -1000.0}
"""SmolLM2's end-of-generation tokens, so that every stream is as long as it was asked to be."""

TOPICS = ["a fox", "the sea", "old maps", "bread", "a train", "winter", "music", "two brothers"]


@dataclass
class Stream:
    """What one client saw."""

    number: int
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    result: Completion | None = None


def read_stream(daemon: Daemon, stream: Stream, order: list[int], start: threading.Barrier) -> None:
    with Client(socket_path=str(daemon.socket)) as client:
        start.wait(30)
        with client.generate(
            f"Tell me a long story about {TOPICS[stream.number]}.",
            max_tokens=MAX_TOKENS,
            seed=stream.number,
            logit_bias=NEVER_END,
            stream=True,
        ) as deltas:
            for delta in deltas:
                order.append(stream.number)
                stream.token_ids += delta.token_ids
                stream.text += delta.text
        stream.result = deltas.result


def test_eight_clients_advance_together_and_the_ledger_adds_up(own_daemon: Daemon) -> None:
    streams = [Stream(number) for number in range(NUM_CLIENTS)]
    order: list[int] = []
    start = threading.Barrier(NUM_CLIENTS)
    threads = [
        threading.Thread(target=read_stream, args=(own_daemon, stream, order, start))
        for stream in streams
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)

    first_end = min(max(i for i, n in enumerate(order) if n == number) for number in range(8))
    started_before_any_ended = set(order[: first_end + 1])
    assert started_before_any_ended == set(range(NUM_CLIENTS)), "a stream waited for another's end"

    for stream in streams:
        assert stream.result is not None
        assert stream.text == stream.result.text
        assert len(stream.token_ids) == stream.result.usage.completion_tokens
        assert stream.result.usage.completion_tokens == MAX_TOKENS
    assert len({stream.text for stream in streams}) == NUM_CLIENTS

    results = [stream.result for stream in streams if stream.result]
    rows = ledger_rows(own_daemon)
    assert {row[0] for row in rows} == {result.request_id for result in results}
    assert all(row[1:3] == ("done", "exact") for row in rows)
    with Client(socket_path=str(own_daemon.socket)) as client:
        total = client.usage(by="model")["total"]
    assert total["requests"] == NUM_CLIENTS
    assert total["prompt_tokens"] == sum(result.usage.prompt_tokens for result in results)
    assert total["completion_tokens"] == sum(result.usage.completion_tokens for result in results)


def ledger_rows(daemon: Daemon) -> list[tuple[str, str, str]]:
    database = sqlite3.connect(f"file:{daemon.state_dir}/ledger.sqlite3?mode=ro", uri=True)
    try:
        return database.execute("SELECT request_id, state, counts FROM requests").fetchall()
    finally:
        database.close()


def test_a_result_does_not_depend_on_its_neighbours(daemon: Daemon) -> None:
    """Eight requests in flight on one connection give the texts they give alone."""
    prompts = [f"{topic.capitalize()} is" for topic in TOPICS]
    with Client(socket_path=str(daemon.socket)) as client:
        alone = [client.generate(p, max_tokens=8, temperature=0).text for p in prompts]
        together: dict[int, str] = {}

        def ask(number: int) -> None:
            result = client.generate(prompts[number], max_tokens=8, temperature=0)
            together[number] = result.text

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(NUM_CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    same = sum(together[number] == alone[number] for number in range(NUM_CLIENTS))
    # A batch adds in another order, so a near tie of two tokens may fall the other way.
    assert same >= NUM_CLIENTS - 2, (alone, together)
