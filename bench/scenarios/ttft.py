"""(g) First token: a process that loads the model itself, the warm daemon, and a restarted service.

The restarted daemon finds what the one before it has saved of a chat with a system prompt of 1,000
tokens, and is asked something else under the same prompt. Beside it how long a service with such a
prompt among its `system_prompts` takes to be ready, the first time and when it is restarted.
"""

from __future__ import annotations

import itertools
import statistics
import time
from typing import TYPE_CHECKING, Final

from answers import Ask
from first_token import cold_start, fresh_script, prompt, warm
from live import serving, short_folder
from measure import Plot, Report, Row, Settings, Target, ratios, spread
from prompts import Prompts
from servers import as_server, traffic

from openclawctl import Client

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Traffic

SYSTEM_TOKENS: Final = 1000
CONTEXT: Final = 2048

NAMES: Final = {
    "cold": "fresh process that loads the model",
    "load": "the same without interpreter and import",
    "script": "fresh script that asks the daemon",
    "warm": "connected program that asks the daemon",
    "prefill": "chat, 1,000-token prompt, computed",
    "restored": "the same after a restart, prompt restored",
    "ready": "start to READY, system prompt computed",
    "ready again": "start to READY, system prompt restored",
}

Samples = dict[str, list[float]]


def run(settings: Settings) -> Report:
    samples: Samples = {way: [] for way in NAMES}
    numbers, prompts = itertools.count(), Prompts()
    with serving() as daemon, Client(daemon.socket) as client, traffic() as load:
        warm(client, "Hello")
        for _ in settings.rounds():
            cold = cold_start(prompt(next(numbers)))
            samples["cold"].append(cold.total_s)
            samples["load"].append(cold.load_s)
            samples["script"].append(fresh_script(str(daemon.socket), prompt(next(numbers))))
            samples["warm"].append(warm(client, prompt(next(numbers))))
            _restart(load, prompts, samples)
            _restart_pinned(prompts.fresh(SYSTEM_TOKENS), samples)
    return _report(samples)


def _restart(load: Traffic, prompts: Prompts, samples: Samples) -> None:
    """A daemon computes a prompt, and the next one with the same state answers under it again."""
    system = prompts.fresh(SYSTEM_TOKENS)
    with short_folder() as folder:
        for way in ("prefill", "restored"):
            question = [
                {"role": "system", "content": system},
                {"role": "user", "content": prompts.fresh(8)},
            ]
            with serving(
                context=CONTEXT,
                settings={"persist_prefixes": "all"},
                folder=folder,
            ) as daemon:
                (answer,) = load.ask(as_server(daemon), Ask(max_tokens=2, messages=question))
            samples[way].append(answer.ttft_s)
            cached = answer.cached_tokens or 0
            assert (cached >= SYSTEM_TOKENS) is (way == "restored"), f"{way}: {cached} cached"


def _restart_pinned(system: str, samples: Samples) -> None:
    with short_folder() as folder:
        for way in ("ready", "ready again"):
            samples[way].append(_ready_s(system, folder))


def _ready_s(system: str, folder: Path) -> float:
    start_s = time.monotonic()
    with serving(context=CONTEXT, settings={"system_prompts": [system]}, folder=folder):
        return time.monotonic() - start_s


def _report(samples: Samples) -> Report:
    warm_s = statistics.median(samples["warm"])
    rows: list[Row] = [
        {
            "first token": NAMES[way],
            "ms": statistics.median(times) * 1e3,
            "spread": spread([seconds * 1e3 for seconds in times]),
            "÷ warm": statistics.median(times) / warm_s,
        }
        for way, times in samples.items()
    ]
    targets = [
        Target.of_rounds("warm ÷ cold", ratios(samples["warm"], samples["cold"]), at_most=0.1),
        Target.of_rounds(
            "after a restart ÷ computed",
            ratios(samples["restored"], samples["prefill"]),
            at_most=0.3,
        ),
    ]
    labels = ["cold", "script", "warm", "prefill", "restored"]
    bars = [[seconds * 1e3 for seconds in samples[way]] for way in labels]
    plot = Plot("Time to the first token", "ms", labels, {"openclawd": [*bars]})
    return Report(rows, targets, dict(samples), plots=[plot])
