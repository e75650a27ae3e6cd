"""The things under measurement: a real daemon, and the real model file.

Owns how the benchmarks and the demo start a daemon. They take the tests' way of doing it
(`tests/harness.py`), so that what is measured is what is tested.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

BENCH: Final = Path(__file__).resolve().parent
ROOT: Final = BENCH.parent

sys.path.append(str(ROOT / "tests"))  # the one place that knows how to start a daemon and wait

from harness import (  # noqa: E402
    Daemon,
    hooked,
    minilm_path,
    running_daemon,
    short_folder,
    smollm2_path,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "BENCH",
    "MODEL",
    "ROOT",
    "Daemon",
    "minilm_path",
    "running_daemon",
    "serving",
    "short_folder",
    "smollm2_path",
]

MODEL: Final = "smollm2"


def num_cores() -> int:
    """Cores this process may use; a daemon that it starts may use the same."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def serving(
    *,
    parallel: int = 8,
    context: int = 2048,
    threads: int | None = None,
    settings: dict[str, Any] | None = None,
    path: Path | None = None,
    worker_hook: str | None = None,
    folder: Path | None = None,
    sections: dict[str, Any] | None = None,
) -> Iterator[Daemon]:
    """A ready daemon with SmolLM2, or the model at `path`. What is left out has the daemon's own
    default; `settings` are more keys of the model's configuration. `worker_hook` is what
    worker_hooks/ is to change in the worker; `sections` stand beside `models`. A `folder` keeps its
    state for the next daemon."""
    model: dict[str, Any] = {
        "path": str(path or smollm2_path()),
        "preload": True,
        "required": True,
        "parallel": parallel,
        "context": context,
        **(settings or {}),
    }
    if threads is not None:
        model["threads"] = threads
    with contextlib.ExitStack() as stack:
        place = folder or stack.enter_context(short_folder())
        config = place / "openclawd.json"
        config.write_text(json.dumps({"models": {MODEL: model}, **(sections or {})}))
        environ = hooked(worker_hook) if worker_hook else {}
        daemon = running_daemon("--config", str(config), folder=place, environ=environ)
        yield stack.enter_context(daemon).wait_ready()


def stop_on_sigterm() -> None:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that no daemon is left behind."""

    def stop(number: int, frame: object) -> None:
        del frame
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
