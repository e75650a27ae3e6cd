"""One stream through the client against llama_cpp.Llama in-process, same threads, same prompt.

Tokens per second from the second token on. Both sides are warm and take turns, never at once. The
in-process side is measured as `create_completion`, which is what a user would write instead of our
client, as its bare token loop, and as that loop with flash attention, which the daemon uses and
llama_cpp.Llama leaves off unless it is told otherwise.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Final

from children import Child, inprocess_model
from live import MODEL, serving
from measure import Report, Row, Settings, Target, median_ratio

from openclawctl import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NUM_TOKENS: Final = 128
PROMPT: Final = "Count: 1, 2, 3, 4, 5,"
"""SmolLM2 counts on and on: greedy decoding does not end before NUM_TOKENS."""

WAYS: Final = ("daemon", "completion", "tokens", "flash")


def run(settings: Settings) -> Report:
    threads = settings.num_threads
    with (
        serving(threads=threads) as daemon,
        Client(daemon.socket) as client,
        inprocess_model(threads=threads) as model,
        inprocess_model("serve-flash", threads=threads) as flash_model,
    ):
        samples = _alternate(client, model, flash_model, settings=settings)
    return _report(samples)


def _alternate(
    client: Client, model: Child, flash_model: Child, *, settings: Settings
) -> dict[str, list[float]]:
    ways: dict[str, Callable[[], float]] = {
        "daemon": lambda: daemon_rate(client),
        "completion": lambda: inprocess_rate(model, way="completion"),
        "tokens": lambda: inprocess_rate(model, way="tokens"),
        "flash": lambda: inprocess_rate(flash_model, way="tokens"),
    }
    samples: dict[str, list[float]] = {way: [] for way in WAYS}
    for measure in ways.values():
        measure()  # warm-up
    for number in settings.rounds():
        for way in WAYS if number % 2 == 0 else reversed(WAYS):
            samples[way].append(ways[way]())
    return samples


def daemon_rate(client: Client) -> float:
    times, num_tokens = [], 0
    with client.generate(
        PROMPT, model=MODEL, max_tokens=NUM_TOKENS, temperature=0, stream=True
    ) as stream:
        for delta in stream:
            times.append(time.monotonic())
            num_tokens += len(delta.token_ids)
    assert len(times) == num_tokens == NUM_TOKENS, "the prompt ended early or deltas were merged"
    return _rate(times)


def inprocess_rate(model: Child, *, way: str) -> float:
    answer = model.ask(way=way, prompt=PROMPT, max_tokens=NUM_TOKENS)
    assert len(answer["times"]) >= NUM_TOKENS - 1, "the prompt ended early"
    return _rate(answer["times"])


def _rate(times: Sequence[float]) -> float:
    return (len(times) - 1) / (times[-1] - times[0])


def _report(samples: dict[str, list[float]]) -> Report:
    ratios = {way: median_ratio(samples["daemon"], samples[way]) for way in WAYS}
    names = {
        "daemon": "openclawd, through the client",
        "completion": "Llama.create_completion(stream=True)",
        "tokens": "Llama.generate, bare loop",
        "flash": "Llama.generate, flash attention on",
    }
    rows: list[Row] = [
        {
            "what": names[way],
            "tok/s median": statistics.median(samples[way]),
            "min": min(samples[way]),
            "max": max(samples[way]),
            "openclawd ÷ this": ratios[way],
        }
        for way in WAYS
    ]
    targets = [
        Target("one stream ÷ in-process create_completion", ratios["completion"], at_least=0.95),
        Target("one stream ÷ in-process bare loop", ratios["tokens"], at_least=0.95),
    ]
    return Report(rows, targets, dict(samples))
