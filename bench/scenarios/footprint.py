"""What a model is estimated to take before it is loaded, and what it takes (PSS) when every
sequence has had a whole context. The files are copies, of which nobody else has pages mapped.
"""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from live import MODEL, minilm_path, running_daemon, short_folder, smollm2_path
from measure import Report, Row, Settings, Target
from models.torch_smollm2 import torch_smollm2_path

from openclawctl import Client

if TYPE_CHECKING:
    from collections.abc import Callable

ANSWER_TOKENS: Final = 16


@dataclass(frozen=True, slots=True)
class Case:
    """`parallel` sequences of `context` tokens each."""

    name: str
    path: Callable[[], Path]
    parallel: int
    context: int
    fill: Callable[[Client, int, int], None]


def run(settings: Settings) -> Report:
    cases = CASES[: settings.pick(2, len(CASES))]
    rows = [_measure(case) for case in cases]
    worst = max(abs(float(row["error"])) for row in rows)
    return Report(rows, [Target("largest error of an estimate", worst, at_most=0.15)])


def _measure(case: Case) -> Row:
    with short_folder() as folder:
        source = case.path()
        path = folder / f"copy{source.suffix}"
        _copy(source, path)
        model: dict[str, Any] = {
            "path": str(path),
            "parallel": case.parallel,
            "context": case.context,
        }
        config = folder / "c.json"
        config.write_text(json.dumps({"models": {MODEL: model}}))
        with (
            running_daemon("--config", str(config), folder=folder) as daemon,
            Client(daemon.wait_ready().socket) as client,
        ):
            memory = client.show(MODEL)["memory"]
            case.fill(client, case.parallel, case.context)
            taken = _pss_bytes(daemon.workers()[0].pid)
    estimate = memory["total_bytes"]
    return {
        "model": case.name,
        "sequences": case.parallel,
        "context": case.context,
        "estimate MiB": estimate / 2**20,
        "PSS MiB": taken / 2**20,
        "error": (estimate - taken) / taken,
    }


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def _generate(client: Client, parallel: int, context: int) -> None:
    """A whole context in each sequence; `word` is a token."""

    def ask(number: int) -> None:
        prompt = f"{number}" + " word" * (context - ANSWER_TOKENS - 8)
        client.generate(prompt, model=MODEL, max_tokens=ANSWER_TOKENS, ignore_eos=True)

    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(ask, range(parallel)))


def _embed(client: Client, parallel: int, context: int) -> None:
    """As many texts at once, each as long as there is room for beside a token at each end."""
    client.embed([" ".join(["word"] * (context - 2))] * parallel, model=MODEL)


def _pss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel says no PSS")


CASES: Final = (
    Case("SmolLM2 Q4_1 (GGUF)", smollm2_path, 1, 512, _generate),
    Case("SmolLM2 Q4_1 (GGUF)", smollm2_path, 4, 1024, _generate),
    Case("SmolLM2 Q4_1 (GGUF)", smollm2_path, 8, 2048, _generate),
    Case("SmolLM2 bfloat16 (torch)", torch_smollm2_path, 2, 512, _generate),
    Case("all-MiniLM-L6-v2 (torch)", minilm_path, 2, 256, _embed),
)
