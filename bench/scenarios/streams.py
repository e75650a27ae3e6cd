"""Total tokens per second of 1 to 16 streams at once, each on its own connection.

Prompts of 62 tokens, 64 tokens out. `tok/s` is of whole requests, from the first one sent to the
last one done; `decode tok/s` is what the usual gap between two tokens of a stream comes to. Beside
it one in-process run after the other, which is all that `llama_cpp.Llama` can do with many prompts.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from children import Child, inprocess_model
from live import MODEL, serving
from measure import Report, Row, Settings, median_ratio, percentile

from openclawctl import AsyncClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COUNTS: Final = (1, 2, 4, 8, 16)
NUM_TOKENS: Final = 64
FEW_TOKENS: Final = 8
NUM_SEQUENTIAL: Final = 2
"""Runs one after the other have the same rate however many they are."""


@dataclass(frozen=True, slots=True)
class Burst:
    """`rate` in tokens/s over all streams; `gaps_s` between tokens of one stream."""

    rate: float
    ttfts_s: list[float]
    gaps_s: list[float]


def run(settings: Settings) -> Report:
    bursts: dict[int, list[Burst]] = {count: [] for count in COUNTS}
    sequential: list[float] = []
    prompts = _prompts()
    with serving(parallel=max(COUNTS), context=1024) as daemon, inprocess_model() as model:
        asyncio.run(_burst(daemon.socket, max(COUNTS), prompts))  # warm-up
        _one_after_the_other(model, prompts)
        for _ in settings.rounds():
            for count in COUNTS:
                bursts[count].append(asyncio.run(_burst(daemon.socket, count, prompts)))
            sequential.append(_one_after_the_other(model, prompts))
    rates = {count: [burst.rate for burst in bursts[count]] for count in COUNTS}
    rows = [_row(count, bursts[count], sequential) for count in COUNTS]
    samples = {f"{count} streams": rates[count] for count in COUNTS}
    return Report(rows, samples={**samples, "in-process": sequential})


def _row(count: int, bursts: list[Burst], sequential: list[float]) -> Row:
    rates = [burst.rate for burst in bursts]
    ttfts = [value for burst in bursts for value in burst.ttfts_s]
    gaps = [value for burst in bursts for value in burst.gaps_s]
    return {
        "streams": count,
        "tok/s": statistics.median(rates),
        "in-process": statistics.median(sequential),
        "ratio": median_ratio(rates, sequential),
        "decode tok/s": count / statistics.median(gaps),
        "ttft p50 ms": statistics.median(ttfts) * 1e3,
        "ttft max": max(ttfts) * 1e3,
        "gap p50 ms": statistics.median(gaps) * 1e3,
        "gap p99": percentile(gaps, 0.99) * 1e3,
    }


async def _burst(socket_path: Path, count: int, prompts: Iterator[str]) -> Burst:
    clients = [AsyncClient(socket_path) for _ in range(count)]
    for client in clients:
        await client.ping()  # connected before the clock starts
    start = time.monotonic()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_stream(client, next(prompts))) for client in clients]
    total_s = time.monotonic() - start
    for client in clients:
        await client.aclose()
    all_times = [task.result() for task in tasks]
    return Burst(
        count * NUM_TOKENS / total_s,
        [times[0] - start for times in all_times],
        [later - sooner for times in all_times for sooner, later in itertools.pairwise(times)],
    )


async def _stream(client: AsyncClient, text: str) -> list[float]:
    times, num_tokens = [], 0
    async with client.generate(
        text, model=MODEL, max_tokens=NUM_TOKENS, temperature=0, stream=True
    ) as stream:
        async for delta in stream:
            times.append(time.monotonic())
            num_tokens += len(delta.token_ids)
    assert num_tokens == NUM_TOKENS, "a prompt ended early"
    assert stream.result.usage.cached_tokens <= FEW_TOKENS, "the prefix cache answered"
    return times


def _one_after_the_other(model: Child, prompts: Iterator[str]) -> float:
    start = time.monotonic()
    for _ in range(NUM_SEQUENTIAL):
        model.ask(way="completion", prompt=next(prompts), max_tokens=NUM_TOKENS)
    return NUM_SEQUENTIAL * NUM_TOKENS / (time.monotonic() - start)


def _prompts() -> Iterator[str]:
    """Texts of one length that greedy decoding goes on counting. They differ from the first number
    on, so that the daemon's prefix cache is of no use."""
    for number in itertools.count():
        start = 101 + 7 * number % 880
        yield "Count: " + " ".join(f"{value}," for value in range(start, start + 12))
