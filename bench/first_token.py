"""The time to the first token, four ways: what a warm daemon saves, as a user feels it.

Owns how each way is measured; the demo and the `ttft` scenario show the figures. Each measurement
asks its own question, so that no cache can answer for the model.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from children import ChildFailed, child
from live import BENCH, MODEL, num_cores, smollm2_path

if TYPE_CHECKING:
    from openclawctl import Client

QUESTIONS: Final = (
    "What is the capital of France?",
    "Which planet is the largest?",
    "Who wrote Hamlet?",
    "How many days has a week?",
    "What do bees make?",
    "Which ocean is the deepest?",
    "What colour is the sky?",
)


def question(number: int) -> str:
    return QUESTIONS[number % len(QUESTIONS)]


@dataclass(frozen=True, slots=True)
class ColdStart:
    """A fresh process that loads the model itself. `load_s` is what is left of `total_s` without
    the start of the interpreter and the import of llama_cpp."""

    total_s: float
    load_s: float


def cold_start(text: str) -> ColdStart:
    """From the start of a process that does everything itself to its first token. The model file
    is in the page cache, as after any earlier run; from a cold disk this takes longer."""
    start = time.monotonic()
    with child("inprocess.py", "cold", str(smollm2_path()), str(num_cores()), text) as script:
        times = script.answer()
    return ColdStart(times["first_token"] - start, times["first_token"] - times["imported"])


def fresh_script(socket_path: str, text: str) -> float:
    """From the start of a process that asks the daemon to its first token."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(BENCH / "ask.py"), socket_path, MODEL, text],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ChildFailed(f"asking the daemon from a fresh script failed:\n{done.stderr.strip()}")
    return float(done.stdout) - start


def warm(client: Client, text: str) -> float:
    """From the call of a program that is already connected to its first token."""
    start = time.monotonic()
    messages = [{"role": "user", "content": text}]
    with client.chat(messages, model=MODEL, max_tokens=1, temperature=0, stream=True) as stream:
        next(stream)
        first_token_s = time.monotonic() - start
        list(stream)  # to its end: leaving it would count as cancelled
    return first_token_s
