"""(d) An interactive request every second among batch work that fills the queue, with llama-server.

16 batch streams, twice what is computed at once, each with one request after the other; interactive
requests of 64 tokens that no cache knows, 16 tokens out. How long their first token takes, and what
they cost the batch. llama-server has no priorities: its interactive requests queue with the rest.
"""

from __future__ import annotations

import contextlib
import random
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import answers
from answers import Ask
from measure import Plot, Report, Row, Settings, Target, number, percentile, spread
from prompts import Prompts
from servers import llama_server, openclawd, traffic
from traffic import Script

if TYPE_CHECKING:
    from collections.abc import Iterable

    from answers import Answer
    from servers import Server, Traffic

PARALLEL: Final = 8
NUM_BATCH_STREAMS: Final = 16
BATCH_TOKENS: Final = (64, 192)
"""Each answer has another length, so that the streams do not begin and end together."""

REQUESTS_PER_STREAM: Final = 20
"""More than there is time for."""

PROMPT_TOKENS: Final = 64
INTERACTIVE_TOKENS: Final = 16
NUM_IDLE: Final = 6
GATE_READS: Final = 400
"""Tokens of all batch streams together before anything is counted."""

CONTEXT: Final = 512
OURS: Final = "openclawd"
PEER: Final = "llama-server"


@dataclass(slots=True)
class Samples:
    """Of one server: TTFTs of interactive requests, pooled; the rest has a value per round.
    `idle_share` is the part of the time that the interactive requests take when they are alone,
    `drop` the part of the batch's tokens per second that is lost to them."""

    idle_ttfts_s: list[float] = field(default_factory=list)
    busy_ttfts_s: list[float] = field(default_factory=list)
    alone_rates: list[float] = field(default_factory=list)
    shared_rates: list[float] = field(default_factory=list)
    idle_shares: list[float] = field(default_factory=list)

    @property
    def drops(self) -> list[float]:
        pairs = zip(self.shared_rates, self.alone_rates, strict=True)
        return [1 - shared / alone for shared, alone in pairs]

    @property
    def excess(self) -> list[float]:
        """What is lost beyond what the interactive requests themselves need."""
        return [drop - share for drop, share in zip(self.drops, self.idle_shares, strict=True)]


def run(settings: Settings) -> Report:
    prompts = Prompts()
    found = {OURS: Samples(), PEER: Samples()}
    num_interactive, threads = settings.pick(6, 15), settings.num_threads
    with contextlib.ExitStack() as stack:
        load = stack.enter_context(traffic())
        servers = [
            stack.enter_context(openclawd(parallel=PARALLEL, context=CONTEXT, threads=threads)),
            stack.enter_context(llama_server(parallel=PARALLEL, context=CONTEXT, threads=threads)),
        ]
        for turn in settings.rounds():
            for server in servers if turn % 2 == 0 else reversed(servers):
                measure(load, server, prompts, found[server.name], num_interactive)
    return _report(found)


def measure(
    load: Traffic, server: Server, prompts: Prompts, samples: Samples, num_interactive: int
) -> None:
    idle = load.ask(server, *(_interactive(prompts) for _ in range(NUM_IDLE)))
    answers.check(idle, server=server.name, prompt_tokens=PROMPT_TOKENS, tokens=INTERACTIVE_TOKENS)
    samples.idle_ttfts_s += answers.ttfts_s(idle)
    alone = load.run(server, _batch(prompts), gate_reads=GATE_READS, hold_s=float(num_interactive))
    samples.alone_rates.append(_rate(alone.scripts, alone.gate_s, alone.end_s))
    server.wait_idle()
    urgent = [
        Script([_interactive(prompts)], at_s=float(second)) for second in range(num_interactive)
    ]
    ran = load.run(server, [*_batch(prompts), *urgent], gate_reads=GATE_READS)
    server.wait_idle()
    interactive = [each for (each,) in ran.scripts[NUM_BATCH_STREAMS:]]
    samples.busy_ttfts_s += answers.ttfts_s(interactive)
    start_s, end_s = ran.gate_s, max(each.end_s for each in interactive)
    samples.shared_rates.append(_rate(ran.scripts[:NUM_BATCH_STREAMS], start_s, end_s))
    seconds_each = statistics.median(each.end_s - each.sent_s for each in idle)
    samples.idle_shares.append(num_interactive * seconds_each / (end_s - start_s))


def _interactive(prompts: Prompts) -> Ask:
    text = prompts.fresh(PROMPT_TOKENS)
    return Ask(max_tokens=INTERACTIVE_TOKENS, prompt=text, priority="interactive")


def _batch(prompts: Prompts) -> list[Script]:
    lengths = random.Random(1)
    return [
        Script(
            [
                Ask(
                    max_tokens=lengths.randint(*BATCH_TOKENS),
                    prompt=prompts.fresh(PROMPT_TOKENS),
                    priority="batch",
                )
                for _ in range(REQUESTS_PER_STREAM)
            ],
            is_background=True,
        )
        for _ in range(NUM_BATCH_STREAMS)
    ]


def _rate(scripts: Iterable[list[Answer]], start_s: float, end_s: float) -> float:
    """Tokens per second that came in a span of time."""
    times = (time_s for script in scripts for each in script for time_s in each.token_times_s)
    return sum(start_s <= time_s < end_s for time_s in times) / (end_s - start_s)


# ---- the report ----


def _report(found: dict[str, Samples]) -> Report:
    rows = [_row(name, each) for name, each in found.items()]
    samples = {
        f"{name}, {what}": values
        for name, each in found.items()
        for what, values in (
            ("idle TTFT", each.idle_ttfts_s),
            ("TTFT among batch work", each.busy_ttfts_s),
            ("batch alone, tok/s", each.alone_rates),
            ("batch with interactive, tok/s", each.shared_rates),
            ("share of interactive alone", each.idle_shares),
        )
    }
    labels = ["idle p50", "busy p50", "busy p95"]
    series: dict[str, list[list[float] | None]] = {
        name: [
            [statistics.median(each.idle_ttfts_s)],
            [statistics.median(each.busy_ttfts_s)],
            [percentile(each.busy_ttfts_s, 0.95)],
        ]
        for name, each in found.items()
    }
    plot = Plot("First token of interactive requests among batch work", "s", labels, series)
    return Report(rows, own_targets(found[OURS]), dict(samples), plots=[plot])


def own_targets(samples: Samples) -> list[Target]:
    """No other server is part of them."""
    busy_s = percentile(samples.busy_ttfts_s, 0.95)
    return [
        Target(
            "interactive TTFT p95 ÷ idle median",
            busy_s / statistics.median(samples.idle_ttfts_s),
            at_most=3,
        ),
        Target.of_rounds(
            "batch rate lost beyond the interactive requests' own cost", samples.excess, at_most=0.1
        ),
    ]


def _row(name: str, samples: Samples) -> Row:
    return {
        "server": name,
        "idle TTFT p50 s": number(statistics.median(samples.idle_ttfts_s)),
        "busy TTFT p50 s": number(statistics.median(samples.busy_ttfts_s)),
        "p95": number(percentile(samples.busy_ttfts_s, 0.95)),
        "batch alone tok/s": number(statistics.median(samples.alone_rates)),
        "with interactive": number(statistics.median(samples.shared_rates)),
        "lost": number(statistics.median(samples.drops)),
        "their own cost": number(statistics.median(samples.idle_shares)),
        "lost beyond it": spread(samples.excess),
    }
