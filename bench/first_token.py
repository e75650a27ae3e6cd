"""The time to the first token, four ways: what a warm daemon saves, as a user feels it.

Owns how each way is measured; the demo and the `ttft` scenario show the figures. Prompts are short:
reading a long one takes the same time on every way (about 3 ms a token with SmolLM2 on two cores),
and would hide what differs. Whoever measures numbers the prompts, so that no two are the same and
the daemon's prefix cache answers none.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from string import ascii_uppercase
from typing import TYPE_CHECKING

from children import ChildFailed, child
from live import BENCH, MODEL, num_cores, smollm2_path

if TYPE_CHECKING:
    from openclawctl import Client


def prompt(number: int) -> str:
    """Three tokens. Those of the first 26 numbers differ from the first token on."""
    return f"{ascii_uppercase[number % 26]} is for"


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
    with client.generate(text, model=MODEL, max_tokens=1, temperature=0, stream=True) as stream:
        next(stream)
        first_token_s = time.monotonic() - start
        list(stream)  # to its end: leaving it would count as cancelled
    return first_token_s
