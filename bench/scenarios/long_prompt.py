"""(c) Four streams run when a prompt of 2,000 tokens arrives, against llama-server.

How evenly the streams go on while it is read (gaps between a stream's tokens, over all rounds), and
how much longer it takes to read than when it is alone.
"""

from __future__ import annotations

import contextlib
import statistics
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import answers
from answers import Ask
from measure import Plot, Report, Row, Settings, Target, number, percentile, ratios, spread
from prompts import Prompts
from servers import llama_server, openclawd, traffic
from traffic import Script

if TYPE_CHECKING:
    from answers import Answer
    from servers import Server, Traffic

NUM_STREAMS: Final = 4
STREAM_PROMPT_TOKENS: Final = 64
STREAM_TOKENS: Final = 1000
"""More than they get to say: they are cut when the long prompt has been answered."""

LONG_PROMPT_TOKENS: Final = 2000
LONG_TOKENS: Final = 4
PARALLEL: Final = 8
CONTEXT: Final = 4096
GATE_READS: Final = 80
"""Tokens that each stream has, on average, before the long prompt comes."""

OURS: Final = "openclawd"
PEER: Final = "llama-server"


@dataclass(slots=True)
class Samples:
    """Of one server: gaps of the streams, pooled; TTFTs of the long prompt, one per round."""

    before_s: list[float] = field(default_factory=list)
    during_s: list[float] = field(default_factory=list)
    alone_s: list[float] = field(default_factory=list)
    among_s: list[float] = field(default_factory=list)


def run(settings: Settings) -> Report:
    prompts = Prompts()
    found = {OURS: Samples(), PEER: Samples()}
    threads = settings.num_threads
    with contextlib.ExitStack() as stack:
        load = stack.enter_context(traffic())
        servers = [
            stack.enter_context(openclawd(parallel=PARALLEL, context=CONTEXT, threads=threads)),
            stack.enter_context(llama_server(parallel=PARALLEL, context=CONTEXT, threads=threads)),
        ]
        for server in servers:
            load.ask(server, long_ask(prompts))  # warm-up
        for turn in settings.rounds():
            for server in servers if turn % 2 == 0 else reversed(servers):
                measure(load, server, prompts, found[server.name])
    return _report(found)


def long_ask(prompts: Prompts) -> Ask:
    return Ask(max_tokens=LONG_TOKENS, prompt=prompts.fresh(LONG_PROMPT_TOKENS))


def measure(load: Traffic, server: Server, prompts: Prompts, samples: Samples) -> None:
    alone = load.ask(server, long_ask(prompts))
    answers.check(alone, server=server.name, prompt_tokens=LONG_PROMPT_TOKENS, tokens=LONG_TOKENS)
    samples.alone_s.append(alone[0].ttft_s)
    texts = prompts.several(NUM_STREAMS, STREAM_PROMPT_TOKENS)
    background = [
        Script([Ask(max_tokens=STREAM_TOKENS, prompt=text)], is_background=True) for text in texts
    ]
    ran = load.run(
        server, [*background, Script([long_ask(prompts)])], gate_reads=GATE_READS * NUM_STREAMS
    )
    *streams, (long,) = ran.scripts
    server.wait_idle()
    samples.among_s.append(long.ttft_s)
    samples.before_s += _gaps(
        streams, max(each.token_times_s[0] for (each,) in streams), long.sent_s
    )
    samples.during_s += _gaps(streams, long.sent_s, long.token_times_s[0])


def _gaps(streams: list[list[Answer]], start_s: float, end_s: float) -> list[float]:
    """Gaps that reach into a span of time."""
    return [
        later - sooner
        for (stream,) in streams
        for sooner, later in pairwise(stream.token_times_s)
        if later > start_s and sooner < end_s
    ]


# ---- the report ----


def _report(found: dict[str, Samples]) -> Report:
    p99 = {name: percentile(samples.during_s, 0.99) for name, samples in found.items()}
    slowdown = {name: ratios(each.among_s, each.alone_s) for name, each in found.items()}
    targets = [
        *own_targets(found[OURS]),
        Target("gap p99 during ÷ llama-server's", p99[OURS] / p99[PEER], at_most=0.5),
    ]
    rows = [_row(name, found[name], slowdown[name]) for name in (OURS, PEER)]
    samples = {
        f"{name}, {what}": values
        for name, each in found.items()
        for what, values in (
            ("gaps before", each.before_s),
            ("gaps during", each.during_s),
            ("TTFT alone", each.alone_s),
            ("TTFT among streams", each.among_s),
        )
    }
    labels = ["p50 before", "p50 during", "p99 during"]
    series = {name: _bars(each) for name, each in found.items()}
    plot = Plot("Gap between a stream's tokens while 2,000 tokens are read", "ms", labels, series)
    return Report(rows, targets, dict(samples), plots=[plot])


def own_targets(samples: Samples) -> list[Target]:
    """Those that need no other server beside it."""
    during_s, before_s = percentile(samples.during_s, 0.99), statistics.median(samples.before_s)
    return [
        Target("gap p99 during ÷ p50 before", during_s / before_s, at_most=4),
        Target.of_rounds(
            "long prompt's TTFT ÷ alone", ratios(samples.among_s, samples.alone_s), at_most=1.6
        ),
    ]


def _bars(samples: Samples) -> list[list[float] | None]:
    before, during = samples.before_s, samples.during_s
    values = statistics.median(before), statistics.median(during), percentile(during, 0.99)
    return [[value * 1e3] for value in values]


def _row(name: str, samples: Samples, slowdown: list[float]) -> Row:
    before, during = samples.before_s, samples.during_s
    return {
        "server": name,
        "gap before p50 ms": number(statistics.median(before) * 1e3),
        "p99": number(percentile(before, 0.99) * 1e3),
        "gap during p50 ms": number(statistics.median(during) * 1e3),
        "during p99": number(percentile(during, 0.99) * 1e3),
        "long TTFT alone s": number(statistics.median(samples.alone_s)),
        "among streams": number(statistics.median(samples.among_s)),
        "÷ alone": number(statistics.median(slowdown)),
        "spread": spread(slowdown),
    }
