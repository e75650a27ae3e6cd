"""Torch: eight requests through the daemon against transformers' `generate` of a batch of eight,
and against its `generate_batch`, in the same number format, in turns.

A batch of `generate` begins and ends together, which no traffic does. So the daemon is measured
twice: with the same eight at once, and with requests that join and leave, where eight run all the
time.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import answers
from answers import Ask
from children import child
from measure import Report, Row, Settings, Target, number, ratios, spread
from models.torch_smollm2 import torch_smollm2_path
from prompts import Prompts
from servers import openclawd, traffic
from traffic import Script

if TYPE_CHECKING:
    from children import Child
    from servers import Server, Traffic

NUM_STREAMS: Final = 8
NUM_LEAVING: Final = 3
"""Requests that each stream makes, one after the other, of unlike lengths."""

PROMPT_TOKENS: Final = 64
NEW_TOKENS: Final = 64
DTYPES: Final = ("bfloat16", "float32")
CONTEXT: Final = 512
AT_LEAST_OF_GENERATE: Final = 0.9
AT_LEAST_OF_BATCH: Final = 2.0

AT_ONCE: Final = "openclawd, all at once"
LEAVING: Final = "openclawd, joining and leaving"
STATIC: Final = "generate"
CONTINUOUS: Final = "generate_batch"

Found = dict[str, list[float]]


def run(settings: Settings) -> Report:
    found = {dtype: _measure_all(settings, dtype) for dtype in DTYPES}
    rows: list[Row] = []
    targets: list[Target] = []
    for dtype, rates in found.items():
        static = rates[STATIC]
        for name, values in rates.items():
            rows.append(
                {
                    "format": dtype,
                    "": name,
                    "tok/s": number(sorted(values)[len(values) // 2]),
                    "from to": spread(values),
                    "÷ generate": number(sorted(ratios(values, static))[len(values) // 2]),
                }
            )
        targets += _targets(dtype, rates)
    samples = {f"{dtype} {name}": v for dtype, rates in found.items() for name, v in rates.items()}
    return Report(rows, targets, samples)


def _targets(dtype: str, rates: Found) -> list[Target]:
    return [
        Target.of_rounds(
            f"{dtype}: {name} ÷ {peer}", ratios(rates[name], rates[peer]), at_least=least
        )
        for name in (AT_ONCE, LEAVING)
        for peer, least in ((STATIC, AT_LEAST_OF_GENERATE), (CONTINUOUS, AT_LEAST_OF_BATCH))
    ]


def _measure_all(settings: Settings, dtype: str) -> Found:
    found: Found = {AT_ONCE: [], LEAVING: [], STATIC: [], CONTINUOUS: []}
    path, threads, prompts = torch_smollm2_path(), settings.num_threads, Prompts()
    options = {"device": "cpu", "dtype": dtype}
    with contextlib.ExitStack() as stack:
        load = stack.enter_context(traffic())
        server = stack.enter_context(
            openclawd(
                parallel=NUM_STREAMS, context=CONTEXT, threads=threads, path=path, options=options
            )
        )
        peer = stack.enter_context(child("torch_peer.py", str(path), str(threads), dtype))
        peer.answer()
        for turn in settings.rounds():
            ways = [*found]
            for way in ways if turn % 2 == 0 else reversed(ways):
                found[way].append(_rate(way, load, server, peer, prompts))
    return found


def _rate(way: str, load: Traffic, server: Server, peer: Child, prompts: Prompts) -> float:
    """Tokens written per second, from the first request to the last token."""
    if way in (STATIC, CONTINUOUS):
        texts = prompts.several(NUM_STREAMS, PROMPT_TOKENS)
        answer = peer.ask(way=way, prompts=texts, max_tokens=NEW_TOKENS)
        assert answer["tokens"] == NUM_STREAMS * NEW_TOKENS, answer
        return float(answer["tokens"] / answer["seconds"])
    num_asks = NUM_LEAVING if way == LEAVING else 1
    scripts = [
        Script([_ask(prompts, stream, number, num_asks) for number in range(num_asks)])
        for stream in range(NUM_STREAMS)
    ]
    got = [answer for script in load.run(server, scripts).scripts for answer in script]
    num_tokens = sum(len(answer.token_times_s) for answer in got)
    return num_tokens / answers.total_s(got)


def _ask(prompts: Prompts, stream: int, number: int, num_asks: int) -> Ask:
    """The requests of a stream are as long together as those of any other."""
    length = NEW_TOKENS
    if num_asks > 1 and number < num_asks - 1:
        shift = 4 * stream
        length += shift if number % 2 == 0 else -shift
    return Ask(max_tokens=length, prompt=prompts.fresh(PROMPT_TOKENS))
