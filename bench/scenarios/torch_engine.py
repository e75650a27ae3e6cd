"""(a), (c) and (d) on torch: the engine's scenarios with SmolLM2 as a torch model, in 32 bits.

What is sent and what is measured is said in `streams`, `long_prompt` and `interactive`; there are
fewer numbers of streams, and the rounds of the last are shorter. Nothing is beside it: the targets
are those in which openclawd is compared with itself. A figure is the median of all samples, unless
its line says p95 or p99. (b) takes as long as these three, and is in `torch_chats`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from measure import Report, Row, Settings, number, percentile, spread
from models.torch_smollm2 import torch_smollm2_path
from prompts import Prompts
from servers import openclawd, traffic

from scenarios import interactive, long_prompt, shared_prompt, streams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from measure import Target
    from servers import Server, Traffic

    Part = Callable[[Settings, Traffic, Prompts], tuple[list["Line"], list[Target]]]

COUNTS: Final = (1, 8, 32)
NUM_INTERACTIVE: Final = 6
OPTIONS: Final = {"device": "cpu", "dtype": "float32"}
"""The format in which every CPU is at its best; in 16 bits those without instructions for them
take up to seven times as long."""


@dataclass(frozen=True, slots=True)
class Line:
    """What was measured, and which share of the samples is at most the figure that is shown."""

    what: str
    samples: Sequence[float]
    share: float = 0.5

    def row(self, scenario: str) -> Row:
        figure = number(percentile(self.samples, self.share))
        return {
            "": scenario,
            "what": self.what,
            "measured": figure,
            "least to most": spread(self.samples),
            "samples": len(self.samples),
        }


def run(settings: Settings) -> Report:
    return report(settings, {"(a)": _streams, "(c)": _long, "(d)": _interactive})


def report(settings: Settings, parts: Mapping[str, Part]) -> Report:
    """Measure these, one after the other."""
    prompts = Prompts()
    rows: list[Row] = []
    targets: list[Target] = []
    samples: dict[str, Sequence[float]] = {}
    with traffic() as load:
        for scenario, measure in parts.items():
            lines, of_part = measure(settings, load, prompts)
            rows += [line.row(scenario) for line in lines]
            targets += of_part
            samples |= {f"{scenario} {line.what}": line.samples for line in lines}
    return Report(rows, targets, samples)


def _rounds(settings: Settings, *, parallel: int, context: int) -> Iterator[Server]:
    """The same server in each."""
    path, threads = torch_smollm2_path(), settings.num_threads
    with openclawd(
        parallel=parallel, context=context, threads=threads, path=path, options=OPTIONS
    ) as server:
        for _ in settings.rounds():
            yield server


def _streams(
    settings: Settings, load: Traffic, prompts: Prompts
) -> tuple[list[Line], list[Target]]:
    found: streams.Found = {}
    for server in _rounds(settings, parallel=max(COUNTS), context=streams.CONTEXT):
        for count in COUNTS:
            streams.measure(load, server, prompts.several(count, streams.PROMPT_TOKENS), found)
    lines = []
    for (_, count), each in found.items():
        name = f"{count} stream{'s' * (count > 1)}"
        lines += [
            Line(f"{name}, tok/s", each.rates),
            Line(f"{name}, TTFT s", each.ttfts_s),
            Line(f"{name}, gap s", each.gaps_s),
            Line(f"{name}, gap p99 s", each.gaps_s, 0.99),
        ]
    return lines, []


def chats(settings: Settings, load: Traffic, prompts: Prompts) -> tuple[list[Line], list[Target]]:
    found = shared_prompt.Samples()
    parallel, context = shared_prompt.NUM_CHATS, shared_prompt.CONTEXT
    for server in _rounds(settings, parallel=parallel, context=context):
        shared_prompt.measure(load, server, shared_prompt.Texts.fresh(prompts), found)
    lines = [
        *(Line(f"turn {turn + 1}, s", each) for turn, each in enumerate(found.turns_s)),
        Line("four turns, s", found.totals_s),
        Line("second chat's TTFT ÷ first's", found.second_ttfts),
        Line("times the shared prompt is computed", found.times_computed),
    ]
    return lines, shared_prompt.own_targets(found)


def _long(settings: Settings, load: Traffic, prompts: Prompts) -> tuple[list[Line], list[Target]]:
    found = long_prompt.Samples()
    for server in _rounds(settings, parallel=long_prompt.PARALLEL, context=long_prompt.CONTEXT):
        long_prompt.measure(load, server, prompts, found)
    lines = [
        Line("gap before, s", found.before_s),
        Line("gap during, s", found.during_s),
        Line("gap during p99, s", found.during_s, 0.99),
        Line("long prompt's TTFT alone, s", found.alone_s),
        Line("long prompt's TTFT among streams, s", found.among_s),
    ]
    return lines, long_prompt.own_targets(found)


def _interactive(
    settings: Settings, load: Traffic, prompts: Prompts
) -> tuple[list[Line], list[Target]]:
    found = interactive.Samples()
    for server in _rounds(settings, parallel=interactive.PARALLEL, context=interactive.CONTEXT):
        interactive.measure(load, server, prompts, found, NUM_INTERACTIVE)
    lines = [
        Line("idle TTFT, s", found.idle_ttfts_s),
        Line("TTFT among batch work, s", found.busy_ttfts_s),
        Line("TTFT among batch work p95, s", found.busy_ttfts_s, 0.95),
        Line("batch alone, tok/s", found.alone_rates),
        Line("batch with interactive, tok/s", found.shared_rates),
    ]
    return lines, interactive.own_targets(found)
