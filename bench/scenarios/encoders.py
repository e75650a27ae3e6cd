"""64 requests of one text each, of eight clients, against one batched call without any daemon.

all-MiniLM-L6-v2 on torch; the call is that of sentence-transformers, with the same threads. Three
sets of texts: short ones of at most 8 tokens, middle ones of 34, and mixed ones from 4 to 250.
Beside that the same requests one by one. Requests are sent by this process, which takes its share
of the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import time
from typing import TYPE_CHECKING, Final

from children import Child, child
from live import MODEL, minilm_path, serving
from measure import Plot, Report, Row, Settings, Target, ratios, spread
from prompts import WORDS

from openclawctl import AsyncClient

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

NUM_TEXTS: Final = 64
NUM_CLIENTS: Final = 8
NUM_WORDS: Final = {"short": (2, 6), "middle": (32, 32), "mixed": (2, 248)}
"""The least and the most in a text; one word is one token, and two stand around each text."""

OURS: Final = "64 requests at once"
DIRECT: Final = "one batched call"
SERIAL: Final = "one by one"


def run(settings: Settings) -> Report:
    threads, drawn = settings.num_threads, random.Random(1)
    found = {f"{name}, {way}": [] for name in NUM_WORDS for way in (OURS, DIRECT, SERIAL)}
    with (
        serving(path=minilm_path(), threads=threads, context=256) as daemon,
        _direct(threads) as direct,
    ):
        _measure(found, daemon.socket, direct, "short", drawn)  # warm-up
        found = {way: [] for way in found}
        for turn in settings.rounds():
            for name in NUM_WORDS if turn % 2 == 0 else reversed(NUM_WORDS):
                _measure(found, daemon.socket, direct, name, drawn)
    return _report(found)


@contextlib.contextmanager
def _direct(threads: int) -> Iterator[Child]:
    with child("encode.py", str(minilm_path()), str(threads)) as running:
        running.answer()
        yield running


def _measure(
    found: dict[str, list[float]], socket: Path, direct: Child, name: str, drawn: random.Random
) -> None:
    """Each way with the same texts, one after the other."""
    texts = _texts(name, drawn)
    found[f"{name}, {OURS}"].append(asyncio.run(_at_once_s(socket, texts)))
    found[f"{name}, {DIRECT}"].append(direct.ask(texts=texts)["seconds"])
    found[f"{name}, {SERIAL}"].append(asyncio.run(_one_by_one_s(socket, texts)))


def _texts(name: str, drawn: random.Random) -> list[str]:
    """Lengths are drawn so that each doubling is as frequent as any other."""
    low, high = NUM_WORDS[name]
    lengths = [round(low * (high / low) ** drawn.random()) for _ in range(NUM_TEXTS)]
    return [" ".join(drawn.choices(WORDS, k=length)) for length in lengths]


async def _at_once_s(socket: Path, texts: Sequence[str]) -> float:
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(socket)) for _ in range(NUM_CLIENTS)]
        await asyncio.gather(*(client.ping() for client in clients))
        start = time.perf_counter()
        await asyncio.gather(
            *(clients[n % NUM_CLIENTS].embed(text, model=MODEL) for n, text in enumerate(texts))
        )
        return time.perf_counter() - start


async def _one_by_one_s(socket: Path, texts: Sequence[str]) -> float:
    async with AsyncClient(socket) as client:
        await client.ping()
        start = time.perf_counter()
        for text in texts:
            await client.embed(text, model=MODEL)
        return time.perf_counter() - start


def _report(found: dict[str, list[float]]) -> Report:
    rows = [_row(name, way, found) for name in NUM_WORDS for way in (OURS, DIRECT, SERIAL)]
    targets = [
        Target.of_rounds(
            f"{name} texts: 64 requests ÷ one batched call, in texts per second",
            ratios(found[f"{name}, {DIRECT}"], found[f"{name}, {OURS}"]),
            at_least=0.85,
        )
        for name in NUM_WORDS
    ]
    targets.append(
        Target.of_rounds(
            "short texts: 64 requests ÷ one by one",
            ratios(found[f"short, {SERIAL}"], found[f"short, {OURS}"]),
            at_least=3,
        )
    )
    return Report(rows, targets, samples=found, plots=[_plot(found)])


def _row(name: str, way: str, found: dict[str, list[float]]) -> Row:
    rates = _rates(found[f"{name}, {way}"])
    return {
        "texts": name,
        "way": way,
        "texts/s": round(statistics.median(rates)),
        "spread": spread(rates),
    }


def _rates(seconds: Sequence[float]) -> list[float]:
    return [NUM_TEXTS / each for each in seconds]


def _plot(found: dict[str, list[float]]) -> Plot:
    series = {
        way: [_rates(found[f"{name}, {way}"]) for name in NUM_WORDS]
        for way in (OURS, DIRECT, SERIAL)
    }
    return Plot("Texts encoded per second", "texts/s", list(NUM_WORDS), {**series})
