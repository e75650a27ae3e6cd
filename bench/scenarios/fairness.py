"""(j) Four who ask for little beside one who has 200 requests in the queue.

The four ask once in ten seconds each, 2.5 s apart, with 64 prompt tokens that no cache knows and 16
tokens out; the crowd's answers are 64 to 192 tokens. How long the four's first token takes, against
the same requests to an idle service; and what two crowds that want all they can get are served: of
one tier, and of two tiers with weights of 4 and 1. Each caller has an API key of its own.
"""

from __future__ import annotations

import contextlib
import random
import statistics
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import answers
from answers import Ask
from measure import Plot, Report, Settings, Target, number, percentile
from prompts import Prompts
from servers import openclawd, traffic
from traffic import Script

from openclawctl import Client

if TYPE_CHECKING:
    from answers import Answer
    from servers import Server, Traffic

PARALLEL: Final = 8
CONTEXT: Final = 512
NUM_QUEUED: Final = 200
CROWD_TOKENS: Final = (64, 192)
NUM_FEW: Final = 4
PERIOD_S: Final = 10.0
PROMPT_TOKENS: Final = 64
FEW_TOKENS: Final = 16
GATE_READS: Final = 400
"""Tokens of the crowd before anybody else asks."""

SHARE_S: Final = 40
GOLD: Final = "gold"
GOLD_WEIGHT: Final = 4
NUM_SHARING: Final = 60


def run(settings: Settings) -> Report:
    prompts, chance = Prompts(), random.Random(1)
    num_periods = settings.pick(2, 6)
    idle: list[float] = []
    busy: list[float] = []
    shares: list[float] = []
    weighted: list[float] = []
    with contextlib.ExitStack() as stack:
        load = stack.enter_context(traffic())
        server = stack.enter_context(
            openclawd(
                parallel=PARALLEL,
                context=CONTEXT,
                threads=settings.num_threads,
                sections={"tiers": {GOLD: {"weight": GOLD_WEIGHT}}},
            )
        )
        keys = _keys(server)
        for _ in settings.rounds():
            idle += _ttfts(load, server, _few(prompts, num_periods, keys))
            crowd = _crowd(prompts, chance, keys["crowd"], NUM_QUEUED)
            few = _few(prompts, num_periods, keys)
            busy += _ttfts(load, server, [*crowd, *few], GATE_READS)
            one, other, gold = (keys[name] for name in ("one", "other", GOLD))
            shares.append(_share(load, server, _rivals(prompts, chance, one, other)))
            weighted.append(_share(load, server, _rivals(prompts, chance, gold, other)))
    return _report(idle, busy, shares, weighted)


def _keys(server: Server) -> dict[str, str]:
    """API keys by the names of who asks."""
    few = [f"few-{number}" for number in range(NUM_FEW)]
    with Client(str(server.address)) as admin:
        return {
            name: admin.create_key(name, role="user", tier=GOLD if name == GOLD else None)["secret"]
            for name in (*few, "crowd", "one", "other", GOLD)
        }


def _few(prompts: Prompts, num_periods: int, keys: dict[str, str]) -> list[Script]:
    """Each request on a connection of its own."""
    return [
        Script(
            [
                Ask(
                    max_tokens=FEW_TOKENS,
                    prompt=prompts.fresh(PROMPT_TOKENS),
                    key=keys[f"few-{turn % NUM_FEW}"],
                )
            ],
            at_s=turn * PERIOD_S / NUM_FEW,
        )
        for turn in range(num_periods * NUM_FEW)
    ]


def _crowd(prompts: Prompts, chance: random.Random, key: str, count: int) -> list[Script]:
    """So many at once, each of which asks again when it is answered."""
    ask = Ask(max_tokens=0, key=key)
    return [
        Script(
            [
                replace(
                    ask,
                    max_tokens=chance.randint(*CROWD_TOKENS),
                    prompt=prompts.fresh(PROMPT_TOKENS),
                )
                for _ in range(20)
            ],
            is_background=True,
        )
        for _ in range(count)
    ]


def _ttfts(
    load: Traffic, server: Server, scripts: list[Script], gate_reads: int = 0
) -> list[float]:
    ran = load.run(server, scripts, gate_reads=gate_reads)
    server.wait_idle()
    few = [
        done
        for script, (done, *_) in zip(scripts, ran.scripts, strict=True)
        if not script.is_background
    ]
    answers.check(few, server=server.name, prompt_tokens=PROMPT_TOKENS, tokens=FEW_TOKENS)
    return answers.ttfts_s(few)


def _rivals(prompts: Prompts, chance: random.Random, one: str, other: str) -> list[Script]:
    """Both always want more, one of them on four times as many connections."""
    many = _crowd(prompts, chance, one, NUM_SHARING)
    return [*many, *_crowd(prompts, chance, other, NUM_SHARING // 4)]


def _share(load: Traffic, server: Server, scripts: list[Script]) -> float:
    """Tokens that one was served ÷ those of the other."""
    ran = load.run(server, scripts, gate_reads=GATE_READS, hold_s=SHARE_S)
    server.wait_idle()
    one, other = ran.scripts[:NUM_SHARING], ran.scripts[NUM_SHARING:]
    return _served(one, ran.gate_s) / _served(other, ran.gate_s)


def _served(scripts: list[list[Answer]], start_s: float) -> int:
    """Completion tokens from then on, and the prompts of those that began."""
    every = [each for script in scripts for each in script]
    tokens = sum(time_s >= start_s for each in every for time_s in each.token_times_s)
    begun = (each for each in every if each.token_times_s and each.token_times_s[0] >= start_s)
    return tokens + PROMPT_TOKENS * len(list(begun))


def _report(
    idle: list[float], busy: list[float], shares: list[float], weighted: list[float]
) -> Report:
    rows = [
        {
            "requests": len(busy),
            "idle TTFT p50 s": number(statistics.median(idle)),
            "idle p95": number(percentile(idle, 0.95)),
            "busy TTFT p50 s": number(statistics.median(busy)),
            "busy p95": number(percentile(busy, 0.95)),
            "busy max": number(max(busy)),
            "one ÷ other": number(statistics.median(shares)),
            "weight 4 ÷ 1": number(statistics.median(weighted)),
        }
    ]
    unfair = [abs(1 - share) for share in shares]
    targets = [
        Target(
            "TTFT p95 beside 200 queued ÷ p95 idle",
            percentile(busy, 0.95) / percentile(idle, 0.95),
            at_most=3,
        ),
        Target.of_rounds("tokens served, difference of two", unfair, at_most=0.1),
        Target.of_rounds(
            "tokens served by weight, off from 4 to 1",
            [abs(1 - share / GOLD_WEIGHT) for share in weighted],
            at_most=0.1,
        ),
    ]
    samples = {"idle TTFT": idle, "busy TTFT": busy, "one ÷ other": shares}
    plot = Plot(
        "First token of four who ask for little, beside 200 queued requests of another",
        "s",
        ["idle p50", "busy p50", "busy p95"],
        {
            "openclawd": [
                [statistics.median(idle)],
                [statistics.median(busy)],
                [percentile(busy, 0.95)],
            ]
        },
    )
    return Report(rows, targets, dict(samples), plots=[plot])
