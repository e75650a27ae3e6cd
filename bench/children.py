"""Helper processes of the benchmarks: started, asked, ended.

Owns their pipes. Each child ends when its standard input closes, so none outlives a benchmark that
is killed; each is in a session of its own, so that Ctrl-C reaches only the benchmark.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from live import BENCH, num_cores, smollm2_path

if TYPE_CHECKING:
    from collections.abc import Iterator


class ChildFailed(RuntimeError):
    """A helper process ended before it answered. The message holds what it wrote."""


class Child:
    """A running script that speaks JSON lines."""

    def __init__(self, script: str, process: subprocess.Popen[str]) -> None:
        self._script = script
        self._process = process

    def ask(self, **question: Any) -> dict[str, Any]:
        self.tell(**question)
        return self.answer()

    def tell(self, **question: Any) -> None:
        """Ask without waiting for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for the next line. Raises `ChildFailed`."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ChildFailed(f"{self._script} ended early; its own error is above")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer


@contextlib.contextmanager
def child(script: str, *arguments: str) -> Iterator[Child]:
    """A script of this directory, with the interpreter that runs the benchmark."""
    process = subprocess.Popen(
        [sys.executable, str(BENCH / script), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield Child(script, process)
    finally:
        with process:  # closes its pipes, which ends it, and waits
            process.terminate()


@contextlib.contextmanager
def inprocess_model(mode: str = "serve", *, threads: int | None = None) -> Iterator[Child]:
    """A warm `llama_cpp.Llama` that completes on command; the modes are those of inprocess.py."""
    count = str(threads or num_cores())
    with child("inprocess.py", mode, str(smollm2_path()), count) as running:
        running.answer()
        yield running
