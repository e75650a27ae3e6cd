"""(e) Answers that must follow a JSON schema against free ones of the same length.

Five schemas (`bench/schemas`), each with other seeds in every round: one stream at a time, and 15
at once. Speed is tokens per second from the first token on, so that reading the prompt, which is
the same for both, hides nothing. With five rounds 100 answers are checked. llama-server beside it.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import answers
import jsonschema
from answers import Ask
from live import BENCH
from measure import Plot, Report, Row, Settings, Target, number, spread
from prompts import Prompts
from servers import llama_server, openclawd, traffic

if TYPE_CHECKING:
    from answers import Answer
    from servers import Server, Traffic

SEEDS_AT_ONCE: Final = 3
NEW_WORDS: Final = 8
"""At the beginning of each prompt, so that no cache knows it."""

TEMPERATURE: Final = 0.8
MOST_TOKENS: Final = 400
PARALLEL: Final = 16
CONTEXT: Final = 512
OURS: Final = "openclawd"
PEER: Final = "llama-server"


@dataclass(slots=True)
class Samples:
    """Of one server: answers by whether they are valid, and per round the rate with a schema
    divided by the free one."""

    num_valid: int = 0
    problems: list[str] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    at_once: list[float] = field(default_factory=list)

    @property
    def num_answers(self) -> int:
        return self.num_valid + len(self.problems)


def run(settings: Settings) -> Report:
    schemas = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((BENCH / "schemas").glob("*.json"))
    ]
    prompts, threads = Prompts(), settings.num_threads
    found = {OURS: Samples(), PEER: Samples()}
    with contextlib.ExitStack() as stack:
        load = stack.enter_context(traffic())
        servers = [
            stack.enter_context(openclawd(parallel=PARALLEL, context=CONTEXT, threads=threads)),
            stack.enter_context(llama_server(parallel=PARALLEL, context=CONTEXT, threads=threads)),
        ]
        for turn in settings.rounds():
            asks = [_ask(prompts, schema, seed=turn) for schema in schemas]
            seeds = range(100 * (turn + 1), 100 * (turn + 1) + SEEDS_AT_ONCE)
            many = [_ask(prompts, schema, seed=seed) for schema in schemas for seed in seeds]
            for server in servers if turn % 2 == 0 else reversed(servers):
                _measure(load, server, asks, many, found[server.name])
    return _report(found)


def _ask(prompts: Prompts, schema: dict[str, Any], *, seed: int) -> Ask:
    text = f"{prompts.fresh(NEW_WORDS)}.\n{schema['description']} As JSON:\n"
    return Ask(
        max_tokens=MOST_TOKENS,
        prompt=text,
        temperature=TEMPERATURE,
        seed=seed,
        ignore_eos=False,
        schema=schema,
    )


def _measure(
    load: Traffic, server: Server, asks: list[Ask], many: list[Ask], samples: Samples
) -> None:
    shaped = [load.ask(server, ask)[0] for ask in asks]
    free = [load.ask(server, _free(*pair))[0] for pair in zip(asks, shaped, strict=True)]
    rates = [answer.decode_rate for answer in shaped]
    samples.rates += rates
    quotients = [rate / answer.decode_rate for rate, answer in zip(rates, free, strict=True)]
    samples.alone.append(statistics.median(quotients))
    shaped_many = load.burst(server, many)
    free_many = load.burst(server, [_free(*pair) for pair in zip(many, shaped_many, strict=True)])
    samples.at_once.append(answers.decode_rate(shaped_many) / answers.decode_rate(free_many))
    for ask, answer in zip([*asks, *many], [*shaped, *shaped_many], strict=True):
        _judge(ask, answer, samples)


def _free(ask: Ask, shaped: Answer) -> Ask:
    """The same without a schema, and as long."""
    return replace(ask, schema=None, ignore_eos=True, max_tokens=len(shaped.token_times_s))


def _judge(ask: Ask, answer: Answer, samples: Samples) -> None:
    try:
        assert answer.finish_reason == "stop", f"it ended with {answer.finish_reason}"
        # Decimals: as binary fractions, 22.2 is no multiple of 0.1.
        value, schema = (
            json.loads(text, parse_float=Decimal) for text in (answer.text, json.dumps(ask.schema))
        )
        jsonschema.validate(value, schema, format_checker=jsonschema.FormatChecker())
    except (AssertionError, ValueError, jsonschema.ValidationError) as problem:
        samples.problems.append(f"{problem}".splitlines()[0])
    else:
        samples.num_valid += 1


# ---- the report ----


def _report(found: dict[str, Samples]) -> Report:
    ours = found[OURS]
    targets = [
        Target(f"valid answers, of {ours.num_answers}", ours.num_valid, at_least=ours.num_answers),
        Target.of_rounds("rate with a schema ÷ free, one stream", ours.alone, at_least=0.9),
        Target.of_rounds("the same, 15 at once", ours.at_once, at_least=0.9),
    ]
    rows = [_row(name, each) for name, each in found.items()]
    samples = {
        f"{name}, {what}": values
        for name, each in found.items()
        for what, values in (("one stream", each.alone), ("15 at once", each.at_once))
    }
    remarks = [f"{name}: {problem}" for name, each in found.items() for problem in each.problems]
    series: dict[str, Any] = {name: [each.alone, each.at_once] for name, each in found.items()}
    plot = Plot("Rate with a JSON schema ÷ free rate", "", ["one stream", "15 at once"], series)
    return Report(rows, targets, dict(samples), remarks, plots=[plot])


def _row(name: str, samples: Samples) -> Row:
    return {
        "server": name,
        "answers": samples.num_answers,
        "valid": samples.num_valid,
        "tok/s, one stream": number(statistics.median(samples.rates)),
        "÷ free": number(statistics.median(samples.alone)),
        "spread": spread(samples.alone),
        "÷ free, 15 at once": number(statistics.median(samples.at_once)),
        "its spread": spread(samples.at_once),
    }
