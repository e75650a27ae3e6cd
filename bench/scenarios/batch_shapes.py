"""What batches of decodes and of parts of prompts cost: together and apart, on shared cells and on
cells of each sequence's own, in parts large and small. No server: the backend alone, as a worker
loads it.

The scheduler's rules for a CPU come from here (`openclawd.backends.llama_load._tile_tokens`,
`prefix_sharing: off`, `openclawd.engine.pace`). Each sequence has 100 tokens already. The prompt is
a fresh one, except for the parts that stand after `DEPTHS` tokens of it.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import TYPE_CHECKING, Final

from live import smollm2_path
from measure import Report, Row, Settings, number, ratios, spread

from openclawd.backends import llama
from openclawd.backends.base import LoadSpec
from openclawd.engine.batch import Batch, BatchKind, Chunk, DropCells, Opening, Outputs
from openclawd.engine.sampling import SamplingParams

if TYPE_CHECKING:
    from openclawd.backends.llama import LlamaBackend

NUM_SLOTS: Final = 32
CONTEXT: Final = 256
NUM_TOKENS: Final = 100
"""Of each sequence."""

DECODES: Final = (8, 16, 31)
PARTS: Final = (32, 64, 128)
DEPTHS: Final = (0, 1000, 2000)
DEEP_PARTS: Final = (8, 64, 256)
DEEP_CONTEXT: Final = 2560

NUM_REPEATS: Final = 5
"""Batches of each shape in a round; the median counts."""

_GREEDY: Final = SamplingParams(temperature=0)
_TOKENS: Final = [1000 + 7 * number for number in range(DEEP_CONTEXT)]

Found = dict[tuple[str, int, int], list[float]]


def run(settings: Settings) -> Report:
    found: Found = {}
    threads = settings.num_threads
    with contextlib.ExitStack() as stack:
        shared, separate, deep = (
            stack.enter_context(contextlib.closing(backend))
            for backend in (
                _loaded(threads, shares_cells=True),
                _loaded(threads, shares_cells=False),
                _loaded(threads, num_slots=1, context=DEEP_CONTEXT),
            )
        )
        for backend in (shared, separate):
            _fill(backend)
        for _ in settings.rounds():
            for count in DECODES:
                _measure_decodes(found, shared, separate, count)
                for part in PARTS:
                    _measure_mix(found, shared, count, part)
            for depth in DEPTHS:
                _measure_parts(found, deep, depth)
    return _report(found)


def _loaded(
    threads: int, *, num_slots: int = NUM_SLOTS, context: int = CONTEXT, shares_cells: bool = True
) -> LlamaBackend:
    spec = LoadSpec(
        str(smollm2_path()),
        parallel=num_slots,
        context=context,
        kv_tokens=num_slots * context,
        batch_tokens=512,
        threads=threads,
        shares_cells=shares_cells,
    )
    return llama.load(spec, lambda _: True)


def _fill(backend: LlamaBackend) -> None:
    for slot in range(NUM_SLOTS - 1):
        _compute(backend, [Chunk(slot, 0, _TOKENS[:NUM_TOKENS], num_outputs=0)], opens=True)


def _measure_decodes(
    found: Found, shared: LlamaBackend, separate: LlamaBackend, count: int
) -> None:
    """Both caches in turns."""
    times: dict[str, list[float]] = {"shared": [], "separate": []}
    for _ in range(NUM_REPEATS):
        for name, backend in (("shared", shared), ("separate", separate)):
            times[name].append(_compute(backend, _decodes(count)))
    _note(found, times, count, 0)


def _measure_mix(found: Found, backend: LlamaBackend, count: int, part: int) -> None:
    decodes, prompt = _decodes(count), [_prompt(part)]
    times: dict[str, list[float]] = {"together": [], "apart": []}
    for _ in range(NUM_REPEATS):
        times["together"].append(_compute(backend, decodes + prompt))
        apart_s = _compute(backend, decodes) + _compute(backend, prompt)
        times["apart"].append(apart_s)
    _note(found, times, count, part)


def _measure_parts(found: Found, backend: LlamaBackend, depth: int) -> None:
    """The next part of a prompt of which `depth` tokens are there: seconds a token."""
    backend.forward(Batch(BatchKind.GENERATION, [], cache_ops=[DropCells(0)]))
    for start in range(0, depth, 500):
        _compute(backend, [Chunk(0, start, _TOKENS[start : start + 500], 0)], opens=True)
    times: dict[str, list[float]] = {f"part of {part}": [] for part in DEEP_PARTS}
    for _ in range(NUM_REPEATS):
        for part in DEEP_PARTS:
            chunk = Chunk(0, depth, _TOKENS[depth : depth + part], num_outputs=0)
            times[f"part of {part}"].append(_compute(backend, [chunk]) / part)
    _note(found, times, 0, depth)


def _note(found: Found, times: dict[str, list[float]], count: int, part: int) -> None:
    for name, values in times.items():
        found.setdefault((name, count, part), []).append(statistics.median(values))


def _decodes(count: int) -> list[Chunk]:
    return [Chunk(slot, NUM_TOKENS, [2000 + slot], num_outputs=1) for slot in range(count)]


def _prompt(part: int) -> Chunk:
    return Chunk(NUM_SLOTS - 1, 0, _TOKENS[:part], num_outputs=0)


def _compute(backend: LlamaBackend, chunks: list[Chunk], *, opens: bool = False) -> float:
    """Seconds. What it added to the cells is dropped again, except when it `opens` its slots."""
    opened = [Opening(chunk.slot, (1,), 1, _GREEDY) for chunk in chunks]
    started_s = time.perf_counter()
    result = backend.forward(Batch(BatchKind.GENERATION, chunks, opened))
    seconds = time.perf_counter() - started_s
    assert isinstance(result, Outputs), result
    if not opens:
        ends = [(chunk, chunk.position + len(chunk.tokens)) for chunk in chunks]
        ops = [DropCells(chunk.slot, chunk.position, end) for chunk, end in ends]
        backend.forward(Batch(BatchKind.GENERATION, [], cache_ops=[*ops]))
    return seconds


# ---- the report ----


def _report(found: Found) -> Report:
    rows = [_row(found, "shared", "separate", count, 0) for count in DECODES]
    rows += [_row(found, "together", "apart", count, part) for count in DECODES for part in PARTS]
    few, *more = (f"part of {part}" for part in DEEP_PARTS)
    rows += [_row(found, few, part, 0, depth) for depth in DEPTHS for part in more]
    samples = {f"{name}, {count} + {part}": values for (name, count, part), values in found.items()}
    remark = (
        "`tokens` are those of the prompt in the batch; for parts, those before it, in the cache;"
        " the times are a token's."
    )
    return Report(rows, samples=dict(samples), remarks=[remark])


def _row(found: Found, one: str, other: str, count: int, part: int) -> Row:
    these, those = found[one, count, part], found[other, count, part]
    quotients = ratios(these, those)
    return {
        "decodes": count,
        "tokens": part,
        "what": f"{one} ÷ {other}",
        "ms": number(statistics.median(these) * 1e3),
        "ms of the other": number(statistics.median(those) * 1e3),
        "ratio": number(statistics.median(quotients)),
        "spread": spread(quotients),
    }
