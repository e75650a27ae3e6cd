"""What a model is estimated to take before it is loaded, and what it takes (PSS) when every
sequence has had a whole context. The file is a copy, of which nobody else has pages mapped.
"""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from live import MODEL, running_daemon, short_folder, smollm2_path
from measure import Report, Row, Settings, Target

from openclawctl import Client

SIZES: Final = ((1, 512), (4, 1024), (8, 2048))
"""Sequences, and tokens of each."""

ANSWER_TOKENS: Final = 16


def run(settings: Settings) -> Report:
    sizes = SIZES[: settings.pick(2, len(SIZES))]
    rows = [_measure(parallel, context) for parallel, context in sizes]
    worst = max(abs(float(row["error"])) for row in rows)
    return Report(rows, [Target("largest error of an estimate", worst, at_most=0.15)])


def _measure(parallel: int, context: int) -> Row:
    with short_folder() as folder:
        path = folder / "copy.gguf"
        shutil.copyfile(smollm2_path(), path)
        model: dict[str, Any] = {"path": str(path), "parallel": parallel, "context": context}
        config = folder / "c.json"
        config.write_text(json.dumps({"models": {MODEL: model}}))
        with (
            running_daemon("--config", str(config), folder=folder) as daemon,
            Client(daemon.wait_ready().socket) as client,
        ):
            memory = client.show(MODEL)["memory"]
            _fill(client, parallel, context)
            taken = _pss_bytes(daemon.workers()[0].pid)
    estimate = memory["total_bytes"]
    return {
        "sequences": parallel,
        "context": context,
        "estimate MiB": estimate / 2**20,
        "PSS MiB": taken / 2**20,
        "error": (estimate - taken) / taken,
    }


def _fill(client: Client, parallel: int, context: int) -> None:
    """A whole context in each sequence; `word` is a token."""

    def ask(number: int) -> None:
        prompt = f"{number}" + " word" * (context - ANSWER_TOKENS - 8)
        client.generate(prompt, model=MODEL, max_tokens=ANSWER_TOKENS, ignore_eos=True)

    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(ask, range(parallel)))


def _pss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel says no PSS")
