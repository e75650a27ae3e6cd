"""(b) Eight chats with one system prompt of 1,000 tokens, four turns each, against llama-server.

The chats ask at the same time, and go on together when all have their answer: 24 words of their own
in each turn, 32 tokens out. Every round has a system prompt that no cache knows. Beside that, with
another one, how soon the first token of a second chat comes when a first has been answered.
"""

from __future__ import annotations

import contextlib
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import answers
from answers import Ask
from measure import Plot, Report, Row, Settings, Target, number, ratios, spread
from prompts import Prompts
from servers import llama_server, openclawd, traffic

if TYPE_CHECKING:
    from answers import Answer
    from servers import Server, Traffic

NUM_CHATS: Final = 8
NUM_TURNS: Final = 4
SYSTEM_TOKENS: Final = 1000
USER_TOKENS: Final = 24
NUM_TOKENS: Final = 32
CONTEXT: Final = 2048

OURS: Final = "openclawd"
PEER: Final = "llama-server"

Messages = list[dict[str, str]]


@dataclass(slots=True)
class Samples:
    """Of one server, a value per round; `turns_s` and `computed` (prompt tokens, of all chats) have
    a list per turn."""

    turns_s: list[list[float]] = field(default_factory=lambda: [[] for _ in range(NUM_TURNS)])
    computed: list[list[float]] = field(default_factory=lambda: [[] for _ in range(NUM_TURNS)])
    second_ttfts: list[float] = field(default_factory=list)
    times_computed: list[float] = field(default_factory=list)

    @property
    def totals_s(self) -> list[float]:
        return [sum(turns) for turns in zip(*self.turns_s, strict=True)]


@dataclass(frozen=True, slots=True)
class Texts:
    """Of a round: two system prompts, and for each turn what each chat says."""

    systems: list[str]
    users: list[list[str]]

    @classmethod
    def fresh(cls, prompts: Prompts) -> Texts:
        users = [prompts.several(NUM_CHATS, USER_TOKENS) for _ in range(NUM_TURNS)]
        return cls(prompts.several(2, SYSTEM_TOKENS), users)


def run(settings: Settings) -> Report:
    prompts = Prompts()
    found = {OURS: Samples(), PEER: Samples()}
    threads = settings.num_threads
    with contextlib.ExitStack() as stack:
        load = stack.enter_context(traffic())
        servers = [
            stack.enter_context(openclawd(parallel=NUM_CHATS, context=CONTEXT, threads=threads)),
            stack.enter_context(llama_server(parallel=NUM_CHATS, context=CONTEXT, threads=threads)),
        ]
        for server in servers:
            load.ask(server, Ask(max_tokens=2, prompt=prompts.fresh(2)))  # warm-up
        for turn in settings.rounds():
            texts = Texts.fresh(prompts)
            for server in servers if turn % 2 == 0 else reversed(servers):
                measure(load, server, texts, found[server.name])
    return _report(found)


def measure(load: Traffic, server: Server, texts: Texts, samples: Samples) -> None:
    _all_chats(load, server, texts.systems[0], texts.users, samples)
    _second_chat(load, server, texts.systems[1], texts.users[0], samples)


def _all_chats(
    load: Traffic, server: Server, system: str, texts: list[list[str]], samples: Samples
) -> None:
    chats = [_chat(system) for _ in range(NUM_CHATS)]
    for turn, words in enumerate(texts):
        for chat, text in zip(chats, words, strict=True):
            chat.append({"role": "user", "content": text})
        done = load.burst(server, [Ask(max_tokens=NUM_TOKENS, messages=chat) for chat in chats])
        samples.turns_s[turn].append(answers.total_s(done))
        samples.computed[turn].append(sum(map(_num_computed, done)))
        if turn == 0:
            samples.times_computed.append(_times_computed(done))
        for chat, answer in zip(chats, done, strict=True):
            chat.append({"role": "assistant", "content": answer.text})


def _second_chat(
    load: Traffic, server: Server, system: str, texts: list[str], samples: Samples
) -> None:
    asks = [
        Ask(max_tokens=2, messages=[*_chat(system), {"role": "user", "content": text}])
        for text in texts[:2]
    ]
    first, second = load.ask(server, *asks)
    samples.second_ttfts.append(second.ttft_s / first.ttft_s)


def _chat(system: str) -> Messages:
    return [{"role": "system", "content": system}]


def _times_computed(done: list[Answer]) -> float:
    """How often the system prompt was computed, if each chat's own tokens were computed once. A
    little less than that, for the template's tokens around it are shared as well."""
    num_own = sum((each.prompt_tokens or 0) - SYSTEM_TOKENS for each in done)
    return (sum(map(_num_computed, done)) - num_own) / SYSTEM_TOKENS


def _num_computed(answer: Answer) -> int:
    assert answer.prompt_tokens is not None
    return answer.prompt_tokens - (answer.cached_tokens or 0)


# ---- the report ----


def _report(found: dict[str, Samples]) -> Report:
    ours, theirs = found[OURS], found[PEER]
    parts = [(f"turn {turn + 1}, s", samples) for turn, samples in enumerate(ours.turns_s)]
    rows = [_row(name, mine, theirs.turns_s[turn]) for turn, (name, mine) in enumerate(parts)]
    rows += [
        _row(f"turn {turn + 1}, prompt tokens computed", mine, theirs.computed[turn])
        for turn, mine in enumerate(ours.computed)
    ]
    rows.append(_row("four turns, s", ours.totals_s, theirs.totals_s))
    rows.append(_row("second chat's TTFT ÷ first's", ours.second_ttfts, theirs.second_ttfts))
    rows.append(_row("times computed", ours.times_computed, theirs.times_computed))
    targets = [
        Target.of_rounds(
            "first turn ÷ llama-server", ratios(ours.turns_s[0], theirs.turns_s[0]), at_most=0.3
        ),
        Target.of_rounds(
            "four turns ÷ llama-server", ratios(ours.totals_s, theirs.totals_s), at_most=0.5
        ),
        *own_targets(ours),
    ]
    series = {name: [*found[name].turns_s, found[name].totals_s] for name in (OURS, PEER)}
    labels = [*(f"turn {turn + 1}" for turn in range(NUM_TURNS)), "all four"]
    samples = {
        f"{name}, turn {turn + 1}": values
        for name in found
        for turn, values in enumerate(found[name].turns_s)
    }
    samples |= {f"{name}, second TTFT": found[name].second_ttfts for name in found}
    plot = Plot("Eight chats with one system prompt: until all are answered", "s", labels, series)
    return Report(rows, targets, dict(samples), plots=[plot])


def own_targets(samples: Samples) -> list[Target]:
    """Those that need no other server beside it."""
    return [
        Target.of_rounds("times the shared prompt is computed", samples.times_computed, at_most=1),
        Target.of_rounds("second chat's TTFT ÷ first's", samples.second_ttfts, at_most=0.15),
    ]


def _row(what: str, ours: list[float], theirs: list[float]) -> Row:
    quotients = ratios(ours, theirs)
    return {
        "what": what,
        OURS: statistics.median(ours),
        "spread": spread(ours),
        PEER: statistics.median(theirs),
        "its spread": spread(theirs),
        "ours ÷ its": number(statistics.median(quotients)),
        "ratio's spread": spread(quotients),
    }
