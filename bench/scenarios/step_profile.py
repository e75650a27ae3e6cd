"""Where the time of a step goes: decode, sampling, the pipe to the daemon, and Python around them.

Steps in which every stream gets one token. Measured inside the worker by wrapping what it calls
(`bench/worker_hooks`): `decode` is llama_decode, `sampling` all samplers together, `pipe` encoding
and sending the step's one frame, `Python` the rest: scheduling, filling the batch, texts.
"""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any, Final

from answers import Ask
from live import short_folder
from measure import Plot, Report, Row, Settings
from prompts import Prompts
from servers import openclawd, traffic

if TYPE_CHECKING:
    from pathlib import Path

COUNTS: Final = (1, 8, 32)
PARTS: Final = ("decode", "sampling", "pipe", "Python")
PROMPT_TOKENS: Final = 16
NUM_TOKENS: Final = 64
CONTEXT: Final = 256

Step = dict[str, float]


def run(settings: Settings) -> Report:
    prompts = Prompts()
    with (
        short_folder() as folder,
        traffic() as load,
        openclawd(
            parallel=max(COUNTS),
            context=CONTEXT,
            threads=settings.num_threads,
            worker_hook=f"profile:{folder / 'steps'}",
        ) as server,
    ):
        for _ in settings.rounds():
            for count in COUNTS:
                texts = prompts.several(count, PROMPT_TOKENS)
                load.burst(server, [Ask(max_tokens=NUM_TOKENS, prompt=text) for text in texts])
        steps = _read(folder / "steps")
    of_count = {
        count: [step for step in steps if step["sequences"] == step["tokens"] == count]
        for count in COUNTS
    }
    rows = [_row(count, of_count[count]) for count in COUNTS]
    samples = {
        f"{count} streams, {part}, s": [step[part] for step in of_count[count]]
        for count in COUNTS
        for part in PARTS
    }
    series: dict[str, Any] = {
        part: [[_share(of_count[count], part) * 100] for count in COUNTS] for part in PARTS
    }
    labels = [f"{count} stream{'s' * (count > 1)}" for count in COUNTS]
    return Report(rows, samples=dict(samples), plots=[Plot("Of a step", "%", labels, series)])


def _read(path: Path) -> list[Step]:
    """The steps that were written, each with what is left for Python."""
    steps: list[Step] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        step: Step = dict.fromkeys(PARTS, 0.0) | json.loads(line)
        step["Python"] = step["step"] - step["decode"] - step["sampling"] - step["pipe"]
        steps.append(step)
    return steps


def _share(steps: list[Step], part: str) -> float:
    """The median, so that a step that another process held up does not count for many."""
    return statistics.median(step[part] / step["step"] for step in steps)


def _row(count: int, steps: list[Step]) -> Row:
    row: Row = {"streams": count, "steps": len(steps)}
    row["step ms"] = statistics.median(step["step"] for step in steps) * 1e3
    for part in PARTS:
        row[f"{part} %"] = _share(steps, part) * 100
    return row
