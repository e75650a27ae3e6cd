"""(f) Speculation by prompt lookup: a text to be repeated, and ordinary text, with and without.

Two daemons that differ in `speculation` only, asked in turn for the same answers. Rates are tokens
per second from the first token on. The greedy answers of both are compared; where two part, both
tokens must be almost equally likely (`tests/near_ties.py`).
"""

from __future__ import annotations

import contextlib
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import answers
from answers import Ask
from live import smollm2_path
from measure import Plot, Report, Row, Settings, Target, number, ratios, spread
from near_ties import SMOLLM2_NEAR_TIE, NearTies
from prompts import Prompts
from servers import openclawd, traffic
from texts import OPENINGS, PASSAGES

if TYPE_CHECKING:
    from answers import Answer
    from servers import Server, Traffic

PARALLEL: Final = 8
CONTEXT: Final = 512
REPEATING_TOKENS: Final = 120
ORDINARY_TOKENS: Final = 48
NUM_GREEDY: Final = 3
"""How often each opening is asked for greedily a round: texts part so seldom that it takes hundreds
to say how many do."""

NEW_WORDS: Final = 6
"""At the beginning of each prompt, so that no cache knows it."""

OFF: Final = "off"
NGRAM: Final = "ngram"


@dataclass(slots=True)
class Samples:
    """Of one daemon: a rate per round for each task, its greedy answers, and its guesses."""

    rates: dict[str, list[float]] = field(default_factory=dict)
    greedy: list[tuple[str, Answer]] = field(default_factory=list)
    guessed: dict[str, int] = field(default_factory=dict)
    accepted: dict[str, int] = field(default_factory=dict)

    def add(self, task: str, rate: float, done: list[Answer]) -> None:
        self.rates.setdefault(task, []).append(rate)
        for counts, name in ((self.guessed, "guessed_tokens"), (self.accepted, "accepted_tokens")):
            counts[task] = counts.get(task, 0) + sum(each.extra.get(name, 0) for each in done)


REPEATING: Final = "repeating a text"
ORDINARY: Final = "ordinary text"
GREEDY: Final = "ordinary text, greedy"
TOGETHER: Final = f"ordinary text, {PARALLEL} streams"


def run(settings: Settings) -> Report:
    prompts, found = Prompts(), {OFF: Samples(), NGRAM: Samples()}
    with contextlib.ExitStack() as stack:
        load = stack.enter_context(traffic())
        servers = {
            method: stack.enter_context(
                openclawd(
                    parallel=PARALLEL,
                    context=CONTEXT,
                    threads=settings.num_threads,
                    speculation={"method": method},
                )
            )
            for method in found
        }
        for turn in settings.rounds():
            for task, asks in _tasks(prompts, seed=turn).items():
                for method in found if turn % 2 == 0 else reversed(found):
                    _measure(load, servers[method], task, asks, found[method])
    return _report(found)


def _tasks(prompts: Prompts, *, seed: int) -> dict[str, list[Ask]]:
    def ask(text: str, num_tokens: int, temperature: float = 0) -> Ask:
        prompt = f"{prompts.fresh(NEW_WORDS)}.\n{text}"
        return Ask(num_tokens, prompt=prompt, temperature=temperature, seed=seed)

    texts = ("\n\n".join(pair) for pair in zip(PASSAGES[::2], PASSAGES[1::2], strict=True))
    copies = (f"The text:\n{text}\n\nThe same text, word for word:\n" for text in texts)
    return {
        REPEATING: [ask(text, REPEATING_TOKENS) for text in copies],
        GREEDY: [ask(text, ORDINARY_TOKENS) for text in OPENINGS * NUM_GREEDY],
        ORDINARY: [ask(text, ORDINARY_TOKENS, 0.8) for text in OPENINGS[:4]],
        TOGETHER: [ask(text, ORDINARY_TOKENS, 0.8) for text in OPENINGS[:PARALLEL]],
    }


def _measure(load: Traffic, server: Server, task: str, asks: list[Ask], samples: Samples) -> None:
    if task == TOGETHER:
        done = load.burst(server, asks)
        samples.add(task, answers.decode_rate(done), done)
        return
    done = load.ask(server, *asks)
    samples.add(task, statistics.median(each.decode_rate for each in done), done)
    if not asks[0].temperature:
        samples.greedy += [(ask.prompt or "", each) for ask, each in zip(asks, done, strict=True)]


# ---- the report ----


def _report(found: dict[str, Samples]) -> Report:
    off, ngram = found[OFF], found[NGRAM]
    quotients = {task: ratios(ngram.rates[task], off.rates[task]) for task in off.rates}
    num_parted, gaps = _compare(off, ngram)
    targets = [
        Target.of_rounds(f"{REPEATING}, with ÷ without", quotients[REPEATING], at_least=1.3),
        Target.of_rounds(f"{ORDINARY}, with ÷ without", quotients[ORDINARY], at_least=0.95),
        Target.of_rounds(f"{TOGETHER}, with ÷ without", quotients[TOGETHER], at_least=0.95),
        Target("share of greedy texts that part", num_parted / len(off.greedy), at_most=0.02),
        Target(
            "largest gap of logits where they part", max(gaps, default=0), at_most=SMOLLM2_NEAR_TIE
        ),
    ]
    rows = [_row(task, off, ngram, quotients[task]) for task in quotients]
    remarks = [f"{num_parted} of {len(off.greedy)} greedy texts part"]
    samples = {
        f"{task}, {method}": rates
        for method, each in found.items()
        for task, rates in each.rates.items()
    }
    series: dict[str, Any] = {
        f"speculation {method}": [each.rates[task] for task in quotients]
        for method, each in found.items()
    }
    plot = Plot("Tokens per second from the first one on", "tok/s", list(quotients), series)
    return Report(rows, targets, dict(samples), remarks, plots=[plot])


def _row(task: str, off: Samples, ngram: Samples, quotients: list[float]) -> Row:
    return {
        "task": task,
        "without tok/s": statistics.median(off.rates[task]),
        "with": statistics.median(ngram.rates[task]),
        "with ÷ without": number(statistics.median(quotients)),
        "spread": spread(quotients),
        "guessed tokens": ngram.guessed[task],
        "accepted": ngram.accepted[task],
    }


def _compare(off: Samples, ngram: Samples) -> tuple[int, list[float]]:
    """How many greedy answers part, and the gap of the logits at each parting."""
    gaps = []
    with NearTies(smollm2_path(), SMOLLM2_NEAR_TIE) as ties:
        for (prompt, ours), (_, theirs) in zip(ngram.greedy, off.greedy, strict=True):
            if parting := ties.parting(prompt, ours.token_ids, theirs.token_ids):
                gaps.append(parting.gap)
    return len(gaps), gaps
