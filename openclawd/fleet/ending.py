"""Why a worker ended, in a code for the daemon and in a sentence for the administrator. Pure."""

from __future__ import annotations

import contextlib
import enum
import signal
from dataclasses import dataclass
from typing import Final

from openclawd.worker.messages import EXIT_LOAD_FAILED, EXIT_LOAD_FAILED_FOR_NOW


class Cause(enum.Enum):
    """What decides how it goes on."""

    STOPPED = "stopped"
    LOAD_FAILED = "load failed"
    LOAD_FAILED_FOR_NOW = "load failed for now"
    CRASHED = "crashed"


_LOAD_FAILURES: Final = {
    EXIT_LOAD_FAILED: Cause.LOAD_FAILED,
    EXIT_LOAD_FAILED_FOR_NOW: Cause.LOAD_FAILED_FOR_NOW,
}


@dataclass(frozen=True, slots=True)
class Ending:
    """One worker's end."""

    cause: Cause
    story: str


def ending_of(
    status: int, *, said: str | None, last_words: str | None, was_loading: bool
) -> Ending:
    """What an exit status means (negative: the signal that killed it). `said` is the reason the
    worker gave for not loading, `last_words` the end of its standard error."""
    if status in _LOAD_FAILURES:
        return Ending(_LOAD_FAILURES[status], said or last_words or "the worker did not say why")
    story = f"its worker {_how_it_ended(status)}"
    if last_words:
        story += f"; its last words: {last_words}"
    return Ending(Cause.LOAD_FAILED_FOR_NOW if was_loading else Cause.CRASHED, story)


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-status).name}"
    return f"was killed by signal {-status}"
