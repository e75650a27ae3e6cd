"""`python bench/soak.py [--minutes 30]`: does anything grow when a daemon works for long?

Requests arrive at random (Poisson) on a real daemon: chats and completions of all lengths, greedy
and drawn, with and without adapters and priorities, embeddings, and schemas. Some are cancelled
in the middle, some clients vanish without a word. Every ten seconds the memory (PSS), descriptors
and threads of daemon and worker are noted. Prints what was seen and the targets, and keeps every
sample in bench/results/. The figures of a run: docs/reliability.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import statistics
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import psutil
from live import BENCH, MODEL, serving, short_folder, smollm2_path, stop_on_sigterm
from machine import describe_machine
from measure import Target
from models.library import ModelLibrary
from rich.console import Console
from rich.table import Table

from openclawctl import AsyncClient, Cancelled, OpenclawError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from live import Daemon

REQUESTS_PER_S: Final = 0.5
"""About a quarter of what two cores can do with these lengths, so that the queue stays short."""
NUM_FILLING: Final = 16
"""Prompts of 500 words: twice as many as it takes to fill what is kept of prefixes to its bound."""
SAMPLE_S: Final = 10.0
SETTLED_MIN: Final = 5.0
"""Caches and allocators fill up in the first minutes; growth is judged after them."""
MIB: Final = 1024 * 1024
WORDS: Final = (
    *("the", "sea", "of", "small", "blue", "stones", "and", "every"),
    *("long", "river", "where", "people", "tell", "old", "stories", "again"),
)
SCHEMA: Final = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}

console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Sample:
    """What two processes held at one moment; `minute` since the start."""

    minute: float
    daemon_pss: int
    worker_pss: int
    daemon_fds: int
    worker_fds: int
    daemon_threads: int
    worker_threads: int
    kv_in_use: int
    running: int
    queued: int

    @property
    def pss(self) -> int:
        return self.daemon_pss + self.worker_pss


@dataclass(slots=True)
class Load:
    """The random requests, and what became of them."""

    socket: str
    random: random.Random
    outcomes: Counter[str] = field(default_factory=Counter)
    adapters: Counter[str] = field(default_factory=Counter)
    num_tokens: int = 0

    async def run(self, until: float) -> None:
        """First of all long prompts, which fill what is kept of prefixes to its bound."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(NUM_FILLING):
                tasks.create_task(self._fill())
        async with asyncio.TaskGroup() as tasks:
            while (now := time.monotonic()) < until:
                tasks.create_task(self._one())
                pause_s = self.random.expovariate(REQUESTS_PER_S)
                await asyncio.sleep(min(pause_s, until - now))

    async def _fill(self) -> None:
        async with AsyncClient(self.socket) as client:
            text = " ".join(self.random.choices(WORDS, k=500))
            answer = await client.generate(text, model=MODEL, max_tokens=4)
            self.num_tokens += answer.usage.completion_tokens
            self.outcomes["done"] += 1

    async def _one(self) -> None:
        kinds: list[tuple[Callable[[AsyncClient], Awaitable[str]], int]] = [
            (self._whole, 12),
            (self._cancelled, 3),
            (self._embedded, 2),
            (self._structured, 1),
            (self._vanished, 2),
        ]
        choose, weights = zip(*kinds, strict=True)
        (kind,) = self.random.choices(choose, weights)
        try:
            async with AsyncClient(self.socket) as client:
                self.outcomes[await kind(client)] += 1
        except OpenclawError as error:
            self.outcomes[error.code] += 1

    def _options(self) -> dict[str, Any]:
        pick = self.random.choice
        adapter = pick([None, None, *ADAPTERS])
        self.adapters[adapter or "none"] += 1
        return {
            "model": MODEL,
            "max_tokens": self.random.randint(4, 80),
            "temperature": pick([0, 0, 0.8, 1.2]),
            "adapter": adapter,
            "priority": pick(["batch", "normal", "normal", "interactive"]),
        }

    def _text(self) -> str:
        """From a few words to some hundred; some begin alike, so that prefixes are shared."""
        length = int(self.random.lognormvariate(3.2, 1.0))
        words = self.random.choices(WORDS, k=min(max(length, 3), 500))
        is_alike = self.random.random() < 0.2
        return " ".join([*(WORDS * 20 if is_alike else ()), *words])

    async def _whole(self, client: AsyncClient) -> str:
        if self.random.random() < 0.5:
            messages = [{"role": "user", "content": self._text()}]
            answer = await client.chat(messages, **self._options())
        else:
            answer = await client.generate(self._text(), **self._options())
        self.num_tokens += answer.usage.completion_tokens
        return "done"

    async def _structured(self, client: AsyncClient) -> str:
        options = {**self._options(), "max_tokens": 80}
        answer = await client.generate(
            self._text(), format={"type": "json_schema", "schema": SCHEMA}, **options
        )
        self.num_tokens += answer.usage.completion_tokens
        return "done (schema)"

    async def _embedded(self, client: AsyncClient) -> str:
        await client.embed([self._text() for _ in range(self.random.randint(1, 4))], model=MODEL)
        return "done (embed)"

    async def _cancelled(self, client: AsyncClient) -> str:
        left = self.random.randint(0, 20)
        with contextlib.suppress(Cancelled):
            async with client.generate(self._text(), stream=True, **self._options()) as stream:
                async for delta in stream:
                    self.num_tokens += len(delta.token_ids)
                    if (left := left - 1) < 0:
                        stream.cancel()
        return "cancelled by its client"

    async def _vanished(self, client: AsyncClient) -> str:
        """Closes its socket in the middle of an answer."""
        stream = client.generate(self._text(), stream=True, **self._options())
        async with stream:
            async for _ in stream:
                await client.aclose()
                break
        return "vanished"


def main() -> int:
    options = _parser().parse_args()
    stop_on_sigterm()
    with short_folder() as folder:
        library = ModelLibrary(folder)
        paths = {name: str(library.smollm2_adapter(seed)) for seed, name in enumerate(ADAPTERS)}
        # A file of its own: what other processes map of the same pages does not count as ours.
        model = shutil.copy(smollm2_path(), folder)
        settings = {"path": model, "adapters": paths, "speculation": {"method": "ngram"}}
        with serving(parallel=8, context=1024, settings=settings) as daemon:
            load = Load(str(daemon.socket), random.Random(options.seed))
            samples, before, after = asyncio.run(_soak(daemon, load, options.minutes))
    targets = _judge(load, samples, before, after)
    _show(load, samples, before, after, targets)
    _save(load, samples, before, after, targets)
    return 0


ADAPTERS: Final = ("one", "two")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench/soak.py", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    return parser


async def _soak(daemon: Daemon, load: Load, minutes: float) -> tuple[list[Sample], Sample, Sample]:
    """Samples under load, and one at rest before and after it."""
    async with AsyncClient(load.socket) as client:
        await client.generate("Hello", model=MODEL, max_tokens=4)
        started = time.monotonic()
        before = await _sample(daemon, client, started)
        samples: list[Sample] = []
        async with asyncio.TaskGroup() as tasks:
            working = tasks.create_task(load.run(started + 60 * minutes))
            while not working.done():
                await asyncio.wait([working], timeout=SAMPLE_S)
                samples.append(await _sample(daemon, client, started))
                if len(samples) % 30 == 0:
                    _progress(samples[-1], load)
        after = await _sample(daemon, client, started)
    return samples, before, after


async def _sample(daemon: Daemon, client: AsyncClient, started: float) -> Sample:
    status = await client.status()
    (model,) = status["models"]
    engine = model["engine"]
    own, worker = psutil.Process(daemon.pid), psutil.Process(model["worker_pid"])
    return Sample(
        minute=(time.monotonic() - started) / 60,
        daemon_pss=own.memory_full_info().pss,
        worker_pss=worker.memory_full_info().pss,
        daemon_fds=own.num_fds(),
        worker_fds=worker.num_fds(),
        daemon_threads=own.num_threads(),
        worker_threads=worker.num_threads(),
        kv_in_use=engine["kv_used_tokens"] - engine["kv_kept_tokens"],
        running=status["requests"]["running"],
        queued=status["requests"]["queued"],
    )


def _judge(load: Load, samples: list[Sample], before: Sample, after: Sample) -> list[Target]:
    settled = [sample for sample in samples if sample.minute >= SETTLED_MIN]
    if len(settled) < 2:
        return []
    at_five, at_end = settled[0].pss, settled[-1].pss
    changes = [
        Target(
            f"{name} at rest, after - before",
            getattr(after, name) - getattr(before, name),
            at_most=0,
        )
        for name in ("daemon_fds", "worker_fds", "daemon_threads", "worker_threads", "kv_in_use")
    ]
    return [
        Target("PSS slope, MiB per 10 minutes", 10 * _slope(settled) / MIB, at_most=1),
        Target("PSS at the end / at minute five", at_end / at_five, at_most=1.03),
        *changes,
        *(
            Target(f"requests with the adapter {name}", load.adapters[name], at_least=1)
            for name in ADAPTERS
        ),
    ]


def _slope(samples: list[Sample]) -> float:
    """Bytes a minute, by least squares."""
    minutes = [sample.minute for sample in samples]
    return statistics.linear_regression(minutes, [sample.pss for sample in samples]).slope


def _progress(sample: Sample, load: Load) -> None:
    console.print(
        f"minute {sample.minute:.0f}: {sample.pss / MIB:.1f} MiB, {sum(load.outcomes.values())} "
        f"requests, {sample.running} running, {sample.queued} queued"
    )


def _show(
    load: Load, samples: list[Sample], before: Sample, after: Sample, targets: list[Target]
) -> None:
    console.print(
        f"{dict(load.outcomes)}, {load.num_tokens} tokens, by adapter {dict(load.adapters)}"
    )
    table = Table("", "before", "after")
    for name, value in asdict(before).items():
        is_size = name.endswith("pss")
        cells = [
            f"{v / MIB:.2f} MiB" if is_size else f"{v:g}" for v in (value, getattr(after, name))
        ]
        table.add_row(name, *cells)
    console.print(table)
    for target in targets:
        verdict = "PASS" if target.is_met else "MISS"
        console.print(f"{verdict}  {target.name}: {target.value:.3f} ({target.limit})")


def _save(
    load: Load, samples: list[Sample], before: Sample, after: Sample, targets: list[Target]
) -> None:
    folder = BENCH / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"soak-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(
        json.dumps(
            {
                "machine": describe_machine(),
                "outcomes": load.outcomes,
                "adapters": load.adapters,
                "tokens": load.num_tokens,
                "before": asdict(before),
                "after": asdict(after),
                "targets": [target.as_dict() for target in targets],
                "samples": [asdict(sample) for sample in samples],
            },
            indent=1,
        )
    )
    console.print(f"every sample: {path}")


if __name__ == "__main__":
    sys.exit(main())
