"""A hundred requests of all kinds: what the ledger has of each is what the tokenizer and the engine
say, to the token.

Prompts are counted in this process, with llama.cpp's own tokenizer and a template written out by
hand. Completions are counted from a log of the engine's steps, which the worker's backend writes
below everything that counts (`bench/worker_hooks`), and from the deltas that the clients got.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import llama_cpp
import pytest
from harness import RawClient, hooked, running_daemon, short_folder, smollm2_path, wait_until

from openclawctl import Client, DeadlineExceeded
from openclawctl.wire.messages import Delta

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from harness import Daemon

    from openclawctl.wire.results import Usage

MOST_PROMPT = 60
CONFIG = f"""
models: {{m: {{path: {smollm2_path()}, preload: true, parallel: 8}}}}
default_model: m
limits:
  - name: head
    match: {{app: head}}
    max_prompt_tokens: {MOST_PROMPT}
    on_too_long: truncate_head
  - name: mid
    match: {{app: mid}}
    max_prompt_tokens: {MOST_PROMPT}
    on_too_long: truncate_middle
"""
NUM_AT_ONCE = 8
TOO_LONG = " ".join(f"word{number}" for number in range(40))

Tokens = tuple[int, ...]


@dataclass(slots=True, eq=False)
class Asked:
    """One request. `prompts` are what must be computed, `num_sequences` how many answers to each.
    `token_ids` are those of the deltas that came, `usage` that of its result, if it has one."""

    kind: str
    session: str
    prompts: list[Tokens]
    num_sequences: int = 1
    token_ids: list[int] = field(default_factory=list)
    usage: Usage | None = None


@dataclass
class Engine:
    """What the log of the steps says: by prompt, how often it was begun, where its computation
    first began, and all that was sampled after it."""

    begun: Counter[Tokens] = field(default_factory=Counter)
    started_at: dict[Tokens, int] = field(default_factory=dict)
    sampled: dict[Tokens, list[int]] = field(default_factory=lambda: defaultdict(list))
    vectors: Counter[Tokens] = field(default_factory=Counter)

    def read(self, lines: Sequence[str]) -> Engine:
        prompt_of: dict[int, Tokens] = {}
        parked: dict[int, Tokens] = {}
        for step in map(json.loads, lines):
            parked.update((key, prompt_of[slot]) for slot, key in step["parked"])
            prompt_of.update((slot, parked[key]) for slot, key in step["resumed"])
            for slot, tokens in step["opened"]:
                prompt_of[slot] = tuple(tokens)
                self.begun[prompt_of[slot]] += 1
            for slot, position, _ in step["computed"]:
                self.started_at.setdefault(prompt_of[slot], position)
            for slot, tokens in step["sampled"]:
                self.sampled[prompt_of[slot]] += tokens
            self.vectors.update(prompt_of[slot] for slot in step["vectors"])
        return self


class Tokenizer:
    """The model's vocabulary, with nothing of openclawd's around it."""

    def __init__(self) -> None:
        self._llama = llama_cpp.Llama(str(smollm2_path()), vocab_only=True, verbose=False)

    def text(self, text: str) -> Tokens:
        return tuple(self._llama.tokenize(text.encode(), add_bos=False, special=False))

    def chat(self, messages: Sequence[dict[str, str]]) -> Tokens:
        """As SmolLM2's template has it; the first message is the system's."""
        turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
        rendered = "".join([*turns, "<|im_start|>assistant\n"])
        return tuple(self._llama.tokenize(rendered.encode(), add_bos=False, special=True))

    def close(self) -> None:
        self._llama.close()


@pytest.fixture
def tokenizer() -> Iterator[Tokenizer]:
    tokenizer = Tokenizer()
    yield tokenizer
    tokenizer.close()


@pytest.fixture
def steps() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder / "steps"


@pytest.fixture
def logged(folder: Path, steps: Path) -> Iterator[Daemon]:
    """A daemon whose worker logs its steps."""
    (folder / "c.yaml").write_text(CONFIG)
    environ = hooked(f"steps:{steps}")
    arguments = ("--config", str(folder / "c.yaml"))
    with running_daemon(*arguments, folder=folder, environ=environ) as daemon:
        yield daemon.wait_ready()


# ---- the kinds ----


class Asker:
    """Asks requests, each with a number that makes its prompt like no other."""

    def __init__(self, daemon: Daemon, tokenizer: Tokenizer) -> None:
        self._daemon = daemon
        self._tokenizer = tokenizer

    def ask(self, kind: str, number: int) -> Asked:
        draw = random.Random(number)
        how: Callable[[Asked, int, random.Random], None] = getattr(self, f"_{kind}")
        asked = Asked(kind, f"s{number}", [])
        how(asked, number, draw)
        return asked

    def _whole(self, asked: Asked, number: int, draw: random.Random) -> None:
        prompt = self._plain(asked, number)
        with self._client() as client:
            stop = draw.choice((None, ["e"]))
            r = client.generate(prompt, stop=stop, **self._options(asked, draw))
        asked.token_ids, asked.usage = r.choices[0].token_ids, r.usage

    def _streamed(self, asked: Asked, number: int, draw: random.Random) -> None:
        self._read(asked, self._plain(asked, number), self._options(asked, draw))

    def _cancelled(self, asked: Asked, number: int, draw: random.Random) -> None:
        options = {**self._options(asked, draw), "max_tokens": 500, "ignore_eos": True}
        self._read(asked, self._plain(asked, number), options, most=draw.randint(1, 12))

    def _choices(self, asked: Asked, number: int, draw: random.Random) -> None:
        asked.num_sequences = draw.randint(2, 4)
        options = {**self._options(asked, draw), "n": asked.num_sequences}
        self._read(asked, self._plain(asked, number), options)

    def _deadline(self, asked: Asked, number: int, draw: random.Random) -> None:
        options = {**self._options(asked, draw), "max_tokens": 500, "ignore_eos": True}
        with pytest.raises(DeadlineExceeded):
            self._read(
                asked, self._plain(asked, number), {**options, "deadline_s": draw.uniform(0.2, 0.6)}
            )

    def _disconnected(self, asked: Asked, number: int, draw: random.Random) -> None:
        options = {"max_tokens": 500, "ignore_eos": True, "stream": True, "session": asked.session}
        with RawClient(self._daemon.socket) as raw:
            raw.request(1, "generate", prompt=self._plain(asked, number), **options)
            for _ in range(draw.randint(1, 12)):
                asked.token_ids += raw.next_of(Delta).token_ids

    def _chat(self, asked: Asked, number: int, draw: random.Random) -> None:
        messages = turns(draw.randint(0, 2), number)
        asked.prompts = [self._tokenizer.chat(messages)]
        with self._client() as client:
            r = client.chat(messages, **self._options(asked, draw))
        asked.token_ids, asked.usage = r.choices[0].token_ids, r.usage

    def _cut(self, asked: Asked, number: int, draw: random.Random) -> None:
        prompt = f"{number} {TOO_LONG} {number}"
        tokens, half = self._tokenizer.text(prompt), MOST_PROMPT // 2
        app = draw.choice(("head", "mid"))
        left = tokens[-MOST_PROMPT:] if app == "head" else tokens[:half] + tokens[-half:]
        asked.prompts = [left]
        self._read(asked, prompt, self._options(asked, draw), app=app)

    def _cut_chat(self, asked: Asked, number: int, draw: random.Random) -> None:
        messages = turns(5, number)
        left = messages
        while len(self._tokenizer.chat(left)) > MOST_PROMPT:
            left = [left[0], *left[3:]]
        assert len(messages) > len(left) > 2
        asked.prompts = [self._tokenizer.chat(left)]
        with self._client("head") as client:
            r = client.chat(messages, **self._options(asked, draw))
        assert r.context["dropped"]
        asked.token_ids, asked.usage = r.choices[0].token_ids, r.usage

    def _embedded(self, asked: Asked, number: int, draw: random.Random) -> None:
        texts = [f"text {each} of {number}" for each in range(draw.randint(1, 4))]
        asked.prompts = [self._tokenizer.text(text) for text in texts]
        with self._client() as client:
            asked.usage = client.embed(texts, session=asked.session).usage

    # ---- what they share ----

    def _client(self, app: str = "") -> Client:
        return Client(socket_path=str(self._daemon.socket), app=app, retries=0)

    def _plain(self, asked: Asked, number: int) -> str:
        prompt = f"Story {number}: once upon a time"
        asked.prompts = [self._tokenizer.text(prompt)]
        return prompt

    def _options(self, asked: Asked, draw: random.Random) -> dict[str, Any]:
        return {
            "max_tokens": draw.randint(1, 16),
            "seed": draw.randrange(1000),
            "temperature": draw.choice((0.0, 1.0)),
            "session": asked.session,
        }

    def _read(
        self, asked: Asked, prompt: str, options: dict[str, Any], *, most: int = 0, app: str = ""
    ) -> None:
        """Read a stream to its end; cancel it after `most` tokens (0: never)."""
        with (
            self._client(app) as client,
            client.generate(prompt, stream=True, **options) as stream,
        ):
            for delta in stream:
                asked.token_ids += delta.token_ids
                if most and len(asked.token_ids) >= most:
                    stream.cancel()
                    most = 0
            asked.usage = stream.result.usage


def turns(count: int, number: int) -> list[dict[str, str]]:
    """A chat with so many turns before the last one."""
    messages = [{"role": "system", "content": "Be brief."}]
    for turn in range(count):
        messages.append({"role": "user", "content": f"{turn} + {number}?"})
        messages.append({"role": "assistant", "content": f"{turn + number}."})
    return [*messages, {"role": "user", "content": f"And {number}?"}]


KINDS = {
    "whole": 16, "streamed": 14, "cancelled": 14, "disconnected": 12, "deadline": 8, "choices": 10,
    "chat": 10, "cut": 8, "cut_chat": 4, "embedded": 4,
}  # fmt: skip


def ledger_rows(daemon: Daemon, num_wanted: int) -> dict[str, dict[str, Any]]:
    """By session, once all have ended: of those whose client left, nobody is told."""
    with Client(socket_path=str(daemon.socket)) as client:
        read = partial(client.usage_rows, limit=1000)
        wait_until(lambda: len(read()["rows"]) >= num_wanted, what="every row")
        return {row["session"]: row for row in read()["rows"]}


@pytest.mark.slow
def test_a_hundred_requests_of_all_kinds_are_counted_to_the_token(
    logged: Daemon, tokenizer: Tokenizer, steps: Path
) -> None:
    kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
    random.Random(4).shuffle(kinds)
    assert len(kinds) == 100
    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        asker = Asker(logged, tokenizer)
        requests = list(pool.map(asker.ask, kinds, range(len(kinds))))
    rows = ledger_rows(logged, len(kinds))
    engine = Engine().read(steps.read_text().splitlines())
    assert len(rows) == 100
    for asked in requests:
        row = rows[asked.session]
        check_counts(asked, row, engine)
        check_end(asked, row)


def check_counts(asked: Asked, row: dict[str, Any], engine: Engine) -> None:
    """The row against the tokenizer and the engine."""
    first = asked.prompts[0]
    sampled = engine.sampled[first]
    assert row["counts"] == "exact"
    assert row["completion_tokens"] == len(sampled), asked
    num_prompt_tokens = sum(map(len, asked.prompts))
    if asked.kind == "deadline" and not sampled:  # on a busy machine it may pass before that
        assert row["prompt_tokens"] <= (num_prompt_tokens if engine.begun[first] else 0), asked
        return
    assert row["prompt_tokens"] == num_prompt_tokens, asked
    if asked.kind == "embedded":
        assert all(engine.vectors[prompt] == 1 for prompt in asked.prompts)
        return
    assert engine.begun[first] == asked.num_sequences
    assert row["cached_tokens"] == engine.started_at[first]
    if asked.kind == "disconnected":
        assert asked.token_ids == sampled[: len(asked.token_ids)]
    else:
        assert Counter(asked.token_ids) == Counter(sampled), asked


def check_end(asked: Asked, row: dict[str, Any]) -> None:
    """The row against what its client was told, and that it ended as it should."""
    if asked.usage is not None:
        for name in ("prompt_tokens", "completion_tokens", "cached_tokens"):
            assert getattr(asked.usage, name) == row[name], (asked, name)
    ends = {"cancelled": "cancelled", "disconnected": "cancelled", "deadline": "failed"}
    assert row["state"] == ends.get(asked.kind, "done")
    assert bool(row["dropped_tokens"]) == asked.kind.startswith("cut")
