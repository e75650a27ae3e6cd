"""(a) 1 to 32 streams at once, 64 tokens in and 64 out, against the peers and the batch loop alone.

Each stream has a connection of its own and a prompt that no cache knows. `tok/s` is completion
tokens over the whole time, from the first request sent to the last one done, prompts included. The
limit is the same quotient of llama-batched-bench, which computes the same batches with no server,
sampler or text around them. As nothing is shared here, `prefix_sharing` is off for the
openclawd that the targets are about; the other one has the defaults.
"""

from __future__ import annotations

import contextlib
import statistics
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import answers
from answers import Ask
from measure import Plot, Report, Row, Settings, Target, number, percentile, ratios, spread
from prompts import Prompts
from servers import batched_bench, llama_server, openclawd, python_server, traffic

if TYPE_CHECKING:
    from servers import Server, Traffic

COUNTS: Final = (1, 2, 4, 8, 16, 32)
QUICK_COUNTS: Final = (1, 8, 32)
PYTHON_COUNTS: Final = (1, 8)
PROMPT_TOKENS: Final = 64
NUM_TOKENS: Final = 64
CONTEXT: Final = 256

OURS: Final = "openclawd, sharing off"
DEFAULT: Final = "openclawd"
PEER: Final = "llama-server"
PYTHON: Final = "llama_cpp.server"
LIMIT: Final = "llama-batched-bench"


@dataclass(slots=True)
class Samples:
    """Of one server and one number of streams, over all rounds."""

    rates: list[float] = field(default_factory=list)
    ttfts_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)


Found = dict[tuple[str, int], Samples]


def run(settings: Settings) -> Report:
    found: Found = {}
    prompts = Prompts()
    threads = settings.num_threads
    with contextlib.ExitStack() as stack:
        load = stack.enter_context(traffic())
        most = max(COUNTS)
        servers = [
            replace(
                stack.enter_context(
                    openclawd(parallel=most, context=CONTEXT, threads=threads, prefix_sharing="off")
                ),
                name=OURS,
            ),
            stack.enter_context(openclawd(parallel=most, context=CONTEXT, threads=threads)),
            stack.enter_context(llama_server(parallel=most, context=CONTEXT, threads=threads)),
            stack.enter_context(python_server(context=CONTEXT, threads=threads)),
        ]
        for server in servers:
            _burst(load, server, prompts.several(2, PROMPT_TOKENS))  # warm-up
        for turn in settings.rounds():
            for count in QUICK_COUNTS if settings.is_quick else COUNTS:
                texts = prompts.several(count, PROMPT_TOKENS)
                for server in servers if turn % 2 == 0 else reversed(servers):
                    if server.name != PYTHON or count in PYTHON_COUNTS:
                        measure(load, server, texts, found)
                _add_limit(found, count, threads=threads)
    return _report(found)


def measure(load: Traffic, server: Server, texts: list[str], found: Found) -> None:
    """A stream for each text, all at once."""
    done = _burst(load, server, texts)
    samples = found.setdefault((server.name, len(texts)), Samples())
    samples.rates.append(len(texts) * NUM_TOKENS / answers.total_s(done))
    samples.ttfts_s += answers.ttfts_s(done)
    samples.gaps_s += answers.gaps_s(done)


def _burst(load: Traffic, server: Server, texts: list[str]) -> list[answers.Answer]:
    done = load.burst(server, [Ask(prompt=text, max_tokens=NUM_TOKENS) for text in texts])
    answers.check(done, server=server.name, prompt_tokens=PROMPT_TOKENS, tokens=NUM_TOKENS)
    return done


def _add_limit(found: Found, count: int, *, threads: int) -> None:
    seconds = batched_bench(
        streams=count, prompt_tokens=PROMPT_TOKENS, tokens=NUM_TOKENS, threads=threads
    )
    found.setdefault((LIMIT, count), Samples()).rates.append(count * NUM_TOKENS / seconds)


# ---- the report ----


def _report(found: Found) -> Report:
    names = (OURS, DEFAULT, PEER, PYTHON, LIMIT)
    counts = [count for count in COUNTS if (OURS, count) in found]
    pairs = [(name, count) for count in counts for name in names if (name, count) in found]
    rows = [_row(found, *pair) for pair in pairs]
    series = {
        name: [found[name, count].rates if (name, count) in found else None for count in counts]
        for name in names
    }
    labels = [f"{count} stream{'s' * (count > 1)}" for count in counts]
    samples = {f"{name}, {count} streams": found[name, count].rates for name, count in found}
    plot = Plot("Completion tokens per second, prompts included", "tok/s", labels, series)
    return Report(rows, _targets(found), dict(samples), plots=[plot])


def _row(found: Found, name: str, count: int) -> Row:
    samples = found[name, count]
    row: Row = {
        "streams": count,
        "server": name,
        "tok/s": statistics.median(samples.rates),
        "spread": spread(samples.rates),
        "ours ÷ this": "",
        "its spread": "",
        "ttft p50 ms": "",
        "gap p50 ms": "",
        "gap p99": "",
    }
    if name != OURS:
        quotients = ratios(found[OURS, count].rates, samples.rates)
        row["ours ÷ this"] = number(statistics.median(quotients))
        row["its spread"] = spread(quotients)
    if samples.gaps_s:
        row["ttft p50 ms"] = number(statistics.median(samples.ttfts_s) * 1e3)
        row["gap p50 ms"] = number(statistics.median(samples.gaps_s) * 1e3)
        row["gap p99"] = number(percentile(samples.gaps_s, 0.99) * 1e3)
    return row


def _targets(found: Found) -> list[Target]:
    wanted = [(PEER, 1, 0.97)]
    wanted += [(PEER, count, 1.0) for count in (8, 16, 32)]
    wanted += [(LIMIT, count, 0.92) for count in (8, 16, 32)]
    wanted += [(PYTHON, 8, 1.5)]
    return [
        Target.of_rounds(
            f"{count} streams ÷ {name}",
            ratios(found[OURS, count].rates, found[name, count].rates),
            at_least=limit,
        )
        for name, count, limit in wanted
        if (OURS, count) in found
    ]
