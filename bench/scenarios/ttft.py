"""Time to the first token: a process that loads the model itself, against the warm daemon."""

from __future__ import annotations

import itertools
import statistics

from first_token import cold_start, fresh_script, prompt, warm
from live import serving
from measure import Report, Row, Settings, Target

from openclawctl import Client


def run(settings: Settings) -> Report:
    samples: dict[str, list[float]] = {"cold": [], "load": [], "script": [], "warm": []}
    with serving() as daemon, Client(daemon.socket) as client:
        warm(client, "Hello")
        prompts = map(prompt, itertools.count())
        for _ in settings.rounds():
            cold = cold_start(next(prompts))
            samples["cold"].append(cold.total_s)
            samples["load"].append(cold.load_s)
            samples["script"].append(fresh_script(str(daemon.socket), next(prompts)))
            samples["warm"].append(warm(client, next(prompts)))
    return _report(samples)


def _report(samples: dict[str, list[float]]) -> Report:
    names = {
        "cold": "fresh process that loads the model",
        "load": "the same without interpreter and import",
        "script": "fresh script that asks the daemon",
        "warm": "connected program that asks the daemon",
    }
    medians = {way: statistics.median(times) for way, times in samples.items()}
    rows: list[Row] = [
        {"first token": names[way], "ms": median * 1e3, "÷ warm": median / medians["warm"]}
        for way, median in medians.items()
    ]
    ratio = medians["cold"] / medians["warm"]
    return Report(rows, [Target("cold ÷ warm", ratio, at_least=10)], dict(samples))
