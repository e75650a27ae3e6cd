"""Workers that are killed under open requests: clients see a pause, and nothing is lost or told
twice. Whoever seems to kill them is named."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sqlite3
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from harness import RawClient, hooked, running_daemon, smollm2_argument, wait_until
from models.tiny import EXACT
from near_ties import SMOLLM2_NEAR_TIE, NearTies

from openclawctl import Client
from openclawctl.wire.messages import Cancel, Delta, Done, Error, Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from harness import Daemon
    from models.library import ModelLibrary

    from openclawctl.results import Completion

NEVER_END = {0: -1000.0, 2: -1000.0}
"""SmolLM2's tokens that end a text."""

SUBJECTS = ["a fox", "the sea", "old maps", "bread", "a train", "winter", "music", "two brothers"]
PROMPTS = [f"Tell me a long story about {subject}." for subject in SUBJECTS]
NAMED = "suspected of killing"
NUM_KILLS = 10
NUM_TOKENS = 64
MOST_MORE_TOKENS = 24
"""Over all streams before a kill, when each has had one: ten times four leaves room."""


def client_of(daemon: Daemon) -> Client:
    return Client(socket_path=str(daemon.socket), retries=0)


def model_row(client: Client) -> dict[str, Any]:
    row: dict[str, Any] = client.status()["models"][0]
    return row


def endless(prompt: str, *, max_tokens: int) -> dict[str, Any]:
    """Parameters of a `generate` that uses all its tokens."""
    bias = [[token, value] for token, value in NEVER_END.items()]
    return {"prompt": prompt, "max_tokens": max_tokens, "logit_bias": bias}


def kill_worker(daemon: Daemon) -> int:
    (worker,) = daemon.workers()
    worker.send_signal(signal.SIGKILL)
    return worker.pid


def wait_idle(client: Client) -> None:
    """Until the model is ready, and nothing is held any more in the daemon or in the engine."""

    def is_idle() -> bool:
        row = model_row(client)
        engine = Counter(row["engine"])  # 0 for what a fresh worker has not said yet
        num_cells = engine["kv_used_tokens"] - engine["kv_kept_tokens"]
        held = row["busy"], row["queued"], engine["running"], engine["waiting"], num_cells
        return row["state"] == "ready" and not any(held)

    wait_until(is_idle, what="an idle engine")


def ledger_rows(daemon: Daemon) -> dict[str, tuple[str, str | None, str, int, int]]:
    """State, error code, kind of counts, prompt and completion tokens of each request."""
    database = sqlite3.connect(daemon.state_dir / "ledger.sqlite3")
    rows = database.execute(
        "SELECT r.request_id, state, error_code, counts, p.number, coalesce(c.number, 0)"
        " FROM requests AS r JOIN tokens AS p ON p.request_id = r.request_id AND p.kind = 'prompt'"
        " LEFT JOIN tokens AS c ON c.request_id = r.request_id AND c.kind = 'completion'"
    ).fetchall()
    database.close()
    return {row[0]: row[1:] for row in rows}


# ---- ten kills ----


@dataclass
class Stream:
    prompt: str
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    result: Completion | None = None

    @property
    def is_open(self) -> bool:
        return len(self.token_ids) < NUM_TOKENS


def read(daemon: Daemon, stream: Stream) -> None:
    with client_of(daemon) as client:
        with client.generate(
            stream.prompt, max_tokens=NUM_TOKENS, temperature=0, logit_bias=NEVER_END, stream=True
        ) as deltas:
            for delta in deltas:
                stream.token_ids += delta.token_ids
                stream.text += delta.text
        stream.result = deltas.result


@contextlib.contextmanager
def reading(daemon: Daemon) -> Iterator[list[Stream]]:
    """All prompts at once, each by a client of its own, until all have ended."""
    streams = [Stream(prompt) for prompt in PROMPTS]
    threads = [threading.Thread(target=read, args=(daemon, stream)) for stream in streams]
    for thread in threads:
        thread.start()
    try:
        yield streams
    finally:
        for thread in threads:
            thread.join(120)


def kill_again_and_again(daemon: Daemon, streams: list[Stream]) -> None:
    """Each time at some moment after every open stream has had a token since the last time."""
    moments, killed = random.Random(20_261_123), {0}
    with client_of(daemon) as watcher:
        for _ in range(NUM_KILLS):
            wait_until(lambda: is_another_ready(watcher, killed), what="a worker")
            # What the last one had said was read long ago: all that comes now is this one's.
            before = [len(stream.token_ids) for stream in streams]
            more = moments.randrange(MOST_MORE_TOKENS)
            wait_for_tokens(streams, before, more)
            assert any(stream.is_open for stream in streams), "they were over too soon"
            killed.add(kill_worker(daemon))


def is_another_ready(watcher: Client, killed: set[int]) -> bool:
    row = model_row(watcher)
    return row["state"] == "ready" and row["worker_pid"] not in killed


def wait_for_tokens(streams: list[Stream], before: list[int], more: int) -> None:
    """Until every open stream has one, and all together some more."""

    def have_come() -> bool:
        new = [len(stream.token_ids) - had for stream, had in zip(streams, before, strict=True)]
        waiting = [stream for stream, num in zip(streams, new, strict=True) if not num]
        has_enough = sum(new) >= len(streams) + more
        return not any(stream.is_open for stream in waiting) and (
            has_enough or not any(stream.is_open for stream in streams)
        )

    wait_until(have_come, timeout_s=120, what="new tokens")


@pytest.mark.timeout(300)
def test_ten_kills_under_eight_streams_lose_nothing(
    folder: Path, model_path: Path, record_property: Callable[[str, object], None]
) -> None:
    checks = folder / "checks"
    environ = hooked(f"check:{checks}")
    with running_daemon(*smollm2_argument(), folder=folder, environ=environ) as daemon:
        lose_nothing(daemon.wait_ready(), model_path, record_property)
    found = checks.read_text().splitlines()
    assert len(found) > NUM_KILLS, "every worker was idle at least once"
    assert set(found) == {"ok"}, checks.read_text()


def lose_nothing(
    own_daemon: Daemon, model_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with reading(own_daemon) as undisturbed:
        pass
    with reading(own_daemon) as streams:
        kill_again_and_again(own_daemon, streams)

    with NearTies(model_path, most_gap=SMOLLM2_NEAR_TIE) as ties:
        for ours, theirs in zip(streams, undisturbed, strict=True):
            ties.check(ours.prompt, ours.token_ids, theirs.token_ids)
            if ours.token_ids == theirs.token_ids:
                assert ours.text == theirs.text
    record_property("texts that part at near ties", len(ties.partings))
    rows = ledger_rows(own_daemon)
    for stream in [*undisturbed, *streams]:
        assert stream.result is not None
        assert stream.result.text == stream.text
        usage = stream.result.usage
        assert usage.completion_tokens == len(stream.token_ids) == NUM_TOKENS
        counted = rows.pop(stream.result.request_id)
        assert counted == ("done", None, "exact", usage.prompt_tokens, NUM_TOKENS)
    assert not rows
    with client_of(own_daemon) as client:
        wait_idle(client)
        total = client.usage()["total"]
        assert total["completion_tokens"] == 2 * len(PROMPTS) * NUM_TOKENS
        assert total["failed"] == 0


# ---- what else goes on ----


def test_requests_that_wait_for_their_turn_go_on_too(own_daemon: Daemon) -> None:
    with RawClient(own_daemon.socket) as raw:
        for number in range(12):
            raw.request(number, "generate", prompt=f"{number} is", max_tokens=24, stream=True)
        raw.next_of(Delta)
        kill_worker(own_daemon)
        ends = [raw.next_of_any(Done, Error) for _ in range(12)]
    assert {end.type for end in ends} == {"done"}


def test_every_vector_of_an_embedding_comes_once(own_daemon: Daemon) -> None:
    inputs = [f"story {number} of {subject}" for number in range(5) for subject in SUBJECTS]
    with RawClient(own_daemon.socket) as raw:
        undisturbed = vectors(raw, 1, inputs)
        raw.request(2, "embed", input=inputs)
        first = raw.next_of(Delta, 2)
        kill_worker(own_daemon)
        survived = vectors(raw, 2, inputs, first=first)
    for index, expected in enumerate(undisturbed):
        assert float(expected @ survived[index]) > 0.99


def vectors(
    raw: RawClient, number: int, inputs: list[str], *, first: Delta | None = None
) -> list[np.ndarray]:
    """What an `embed` gives, each vector once. It is sent unless its `first` delta has come."""
    found: dict[int, bytes] = {}
    if first is None:
        raw.request(number, "embed", input=inputs)
    else:
        assert first.embedding is not None
        found[first.index] = first.embedding
    while isinstance(message := raw.next_of_any(Delta, Done, Error), Delta):
        assert message.embedding is not None
        assert message.index not in found
        found[message.index] = message.embedding
    assert isinstance(message, Done), message
    return [np.frombuffer(found[index], dtype="<f4") for index in range(len(inputs))]


def test_a_text_that_is_drawn_goes_on_as_it_would_have(own_daemon: Daemon) -> None:
    with client_of(own_daemon) as client:

        def ask() -> Any:
            return client.generate(
                PROMPTS[0],
                max_tokens=24,
                ignore_eos=True,  # what is drawn depends on the processor, and may end before
                seed=5,
                temperature=0.7,
                repeat_penalty=1.2,
                stream=True,
            )

        with ask() as stream:
            expected = [token for delta in stream for token in delta.token_ids]
        with ask() as stream:
            tokens = list(next(iter(stream)).token_ids)
            kill_worker(own_daemon)
            tokens += [token for delta in stream for token in delta.token_ids]
    assert tokens[:12] == expected[:12]
    assert len(tokens) == 24


def test_a_prompt_is_told_as_cached_as_in_its_first_worker(own_daemon: Daemon) -> None:
    shared = " ".join(str(number) for number in range(160))
    with client_of(own_daemon) as client:
        client.generate(shared, max_tokens=1)
        with client.generate(shared, max_tokens=40, logit_bias=NEVER_END, stream=True) as stream:
            next(iter(stream))
            kill_worker(own_daemon)
            list(stream)
    usage = stream.result.usage
    assert usage.cached_tokens >= usage.prompt_tokens - 1
    assert usage.completion_tokens == 40


def test_garbage_that_spreads_costs_the_others_a_pause(models: ModelLibrary, folder: Path) -> None:
    """Without flash attention one sequence's not-a-number makes not-a-number of all."""
    broken, story = 1000, list(range(100, 140))
    config = folder / "c.yaml"
    model = {
        "path": str(models.tiny_broken(broken)),
        "preload": True,
        "context": 1024,
        "options": EXACT,
    }
    config.write_text(json.dumps({"models": {"m": model}}))
    with running_daemon("--config", str(config), folder=folder) as daemon:
        daemon.wait_ready()
        with RawClient(daemon.socket) as raw, client_of(daemon) as client:
            params = {"max_tokens": 400, "temperature": 0}
            for number in range(3):
                raw.request(number, "generate", prompt=story[number:], stream=True, **params)
                raw.next_of(Delta, number)
            raw.request(3, "generate", prompt=[*story, broken], **params)
            ends = [raw.next_of_any(Done, Error) for _ in range(4)]
            by_id = {end.id: end for end in ends}
            for number in range(3):
                undisturbed = client.generate(story[number:], **params)
                end = by_id[number]
                assert isinstance(end, Done), end
                assert end.result["choices"][0]["text"] == undisturbed.text
        error = by_id[3]
        assert isinstance(error, Error)
        assert error.code == "model-failed"
        assert "model m computed garbage" in error.message
        assert "garbage for all there was" in daemon.log()
        assert "it had 3 requests" in daemon.log()


# ---- ends during the pause ----


def test_a_cancel_during_the_pause_gives_what_there_is(own_daemon: Daemon) -> None:
    with RawClient(own_daemon.socket) as raw, client_of(own_daemon) as client:
        raw.request(1, "generate", stream=True, **endless(PROMPTS[0], max_tokens=500))
        first = raw.next_of(Delta)
        kill_worker(own_daemon)
        wait_until(lambda: model_row(client)["state"] == "loading", what="the restart")
        raw.send(Cancel(1))
        text, tokens = first.text, list(first.token_ids)
        while isinstance(message := raw.next_of_any(Delta, Done, Error), Delta):
            text, tokens = text + message.text, tokens + message.token_ids
        assert isinstance(message, Done), message
        (choice,) = message.result["choices"]
        assert (choice["finish_reason"], choice["text"]) == ("cancelled", text)
        assert message.result["usage"]["completion_tokens"] == len(tokens)
        assert message.result["usage"]["counts"] == "exact"
        row = ledger_rows(own_daemon)[message.result["request_id"]]
        assert row[:3] == ("cancelled", None, "exact")
        wait_idle(client)


# ---- who is to blame ----


def test_who_is_in_flight_when_two_workers_die_is_named_and_the_others_live(
    own_daemon: Daemon,
) -> None:
    """The worker is killed whenever it reads the long prompt."""
    suspect = " ".join(str(number) for number in range(250))
    killed: list[int] = []
    with RawClient(own_daemon.socket) as raw, client_of(own_daemon) as client:
        for number, prompt in enumerate(PROMPTS[:3]):
            raw.request(number, "generate", stream=True, **endless(prompt, max_tokens=60))
            raw.next_of(Delta, number)
        raw.request(9, "generate", prompt=suspect, max_tokens=4)
        request_id = started_id(raw, 9)
        while not is_named(own_daemon):
            wait_until(
                lambda: is_named(own_daemon) or is_reading(client, but_not=killed),
                what="the long prompt",
            )
            if not is_named(own_daemon):
                killed.append(kill_worker(own_daemon))
        ends = [raw.next_of_any(Done, Error) for _ in range(4)]
        wait_idle(client)
    (error,) = [end for end in ends if isinstance(end, Error)]
    assert (error.id, error.code) == (9, "worker-died")
    assert "suspected" in error.message
    assert ledger_rows(own_daemon)[request_id][:2] == ("failed", "worker-died")
    assert len(killed) in (2, 3)  # three if the others had got nothing from the second, either
    (line,) = [line for line in own_daemon.log().splitlines() if NAMED in line]
    assert request_id in line
    assert "smollm2" in line
    assert suspect[:20] not in own_daemon.log()


def test_of_several_that_can_have_done_it_one_is_tried_at_a_time(own_daemon: Daemon) -> None:
    prompts = [" ".join(str(number) for number in range(at, at + 150)) for at in (200, 600)]
    killed: list[int] = []
    with RawClient(own_daemon.socket) as raw, client_of(own_daemon) as client:
        for number, prompt in enumerate(prompts):
            raw.request(number, "generate", prompt=prompt, max_tokens=4)
        for _ in range(3):
            wait_until(lambda: is_reading(client, but_not=killed), what="the long prompts")
            killed.append(kill_worker(own_daemon))
        ends = [raw.next_of_any(Done, Error) for _ in prompts]
        wait_idle(client)
    (error,) = [end for end in ends if isinstance(end, Error)]
    assert error.code == "worker-died"


def is_named(daemon: Daemon) -> bool:
    return NAMED in daemon.log()


def is_reading(client: Client, *, but_not: list[int]) -> bool:
    """Is a worker in the middle of a long prompt?"""
    row = model_row(client)
    return row["worker_pid"] not in but_not and row["engine"].get("kv_used_tokens", 0) > 400


def started_id(raw: RawClient, number: int) -> str:
    """The daemon's name for a request that is about to be computed."""
    while (event := raw.next_of(Event, number)).kind != "started":
        pass
    return str(event.data["request_id"])
