"""(i) Requests that come by chance, whether or not earlier ones are answered, with llama-server.

Poisson arrivals at 0.3 to 1.2 of what the faster side completes when it always has work; prompts
of 32 to 256 tokens that no cache knows, answers of 16 to 96. Goodput is the share of requests whose
first token comes within 2 s and whose tokens then come every 100 ms or sooner on average. Both
sides get the same requests at the same times.
"""

from __future__ import annotations

import contextlib
import random
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import answers
from answers import Ask
from measure import Plot, Report, Row, Settings, number, percentile, spread
from prompts import Prompts
from servers import llama_server, openclawd, traffic
from traffic import Script

if TYPE_CHECKING:
    from answers import Answer
    from servers import Server, Traffic

LOADS: Final = (0.3, 0.6, 0.9, 1.2)
PROMPT_TOKENS: Final = (32, 64, 128, 256)
ANSWER_TOKENS: Final = (16, 32, 64, 96)
TTFT_TARGET_S: Final = 2.0
GAP_TARGET_S: Final = 0.1
NUM_FOR_CAPACITY: Final = 24
PARALLEL: Final = 8
CONTEXT: Final = 512
HTTP_THREADS: Final = 128
"""For llama-server: above capacity more requests wait than there are otherwise threads for."""

OURS: Final = "openclawd"
PEER: Final = "llama-server"


@dataclass(slots=True)
class Samples:
    """Of one server at one load: goodput per round; TTFTs and mean gaps of all requests."""

    goodputs: list[float] = field(default_factory=list)
    ttfts_s: list[float] = field(default_factory=list)
    mean_gaps_s: list[float] = field(default_factory=list)

    def add(self, done: list[Answer]) -> None:
        ttfts_s = answers.ttfts_s(done)
        mean_gaps_s = [statistics.mean(each.gaps_s) for each in done]
        met = [
            ttft_s <= TTFT_TARGET_S and gap_s <= GAP_TARGET_S
            for ttft_s, gap_s in zip(ttfts_s, mean_gaps_s, strict=True)
        ]
        self.goodputs.append(sum(met) / len(met))
        self.ttfts_s += ttfts_s
        self.mean_gaps_s += mean_gaps_s


def run(settings: Settings) -> Report:
    prompts, chance, threads = Prompts(), random.Random(1), settings.num_threads
    found: dict[tuple[str, float], Samples] = {}
    with contextlib.ExitStack() as stack:
        load = stack.enter_context(traffic())
        servers = [
            stack.enter_context(openclawd(parallel=PARALLEL, context=CONTEXT, threads=threads)),
            stack.enter_context(
                llama_server(
                    parallel=PARALLEL, context=CONTEXT, threads=threads, http_threads=HTTP_THREADS
                )
            ),
        ]
        capacity = max(_capacity(load, server, prompts) for server in servers)
        window_s = float(settings.pick(10, 15))
        for turn in settings.rounds():
            for part in LOADS:
                scripts = _arrivals(prompts, chance, rate=part * capacity, window_s=window_s)
                for server in servers if turn % 2 == 0 else reversed(servers):
                    done = [each for (each,) in load.run(server, scripts).scripts]
                    found.setdefault((server.name, part), Samples()).add(done)
    return _report(found, capacity)


def _capacity(load: Traffic, server: Server, prompts: Prompts) -> float:
    """Requests per second when there is always work."""
    chance = random.Random(0)
    done = load.burst(server, [_ask(prompts, chance) for _ in range(NUM_FOR_CAPACITY)])
    return len(done) / answers.total_s(done)


def _arrivals(
    prompts: Prompts, chance: random.Random, *, rate: float, window_s: float
) -> list[Script]:
    """A Poisson process: the times between two are distributed exponentially. At least one."""
    scripts = []
    at_s = chance.expovariate(rate)
    while at_s < window_s or not scripts:
        scripts.append(Script([_ask(prompts, chance)], at_s=at_s))
        at_s += chance.expovariate(rate)
    return scripts


def _ask(prompts: Prompts, chance: random.Random) -> Ask:
    text = prompts.fresh(chance.choice(PROMPT_TOKENS))
    return Ask(max_tokens=chance.choice(ANSWER_TOKENS), prompt=text)


# ---- the report ----


def _report(found: dict[tuple[str, float], Samples], capacity: float) -> Report:
    names = (OURS, PEER)
    rows = [_row(name, part, found[name, part]) for part in LOADS for name in names]
    samples = {
        f"{name}, {part} of capacity, {what}": values
        for (name, part), each in found.items()
        for what, values in (
            ("goodput", each.goodputs),
            ("TTFT", each.ttfts_s),
            ("mean gap", each.mean_gaps_s),
        )
    }
    series: dict[str, Any] = {
        name: [[share * 100 for share in found[name, part].goodputs] for part in LOADS]
        for name in names
    }
    labels = [f"{part} of capacity" for part in LOADS]
    remark = f"capacity is {capacity:.2f} requests/s"
    plot = Plot("Requests that meet both targets", "%", labels, series)
    return Report(rows, samples=dict(samples), remarks=[remark], plots=[plot])


def _row(name: str, part: float, samples: Samples) -> Row:
    return {
        "load": part,
        "server": name,
        "requests": len(samples.ttfts_s),
        "goodput %": number(statistics.median(samples.goodputs) * 100),
        "spread": spread([share * 100 for share in samples.goodputs]),
        "ttft p50 s": number(statistics.median(samples.ttfts_s)),
        "ttft p95": number(percentile(samples.ttfts_s, 0.95)),
        "mean gap p50 ms": number(statistics.median(samples.mean_gaps_s) * 1e3),
        "gap p95": number(percentile(samples.mean_gaps_s, 0.95) * 1e3),
    }
