"""Whether a worker gets on with what it was given, and the end of one that does not.

Owns the limits and the evidence. A worker that is stopped, or spins in native code, looks alive:
its process is there and its pipe is open. What tells is that the threads that work have said
nothing for too long while there is work (`Link.stalled_s`). Then it is killed, the model starts
another one, and its requests go on there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from openclawctl.wire.errors import WorkerDied
from openclawd.observe import message_ids
from openclawd.observe.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from openclawd.fleet.process import WorkerProcess

logger = logging.getLogger(__name__)

LOAD_TIMEOUT_S: Final = 300.0
"""A load says how far it is, but for what cannot: importing a library, compiling for a card, the
first step. Reading counts as progress, so this is no limit for large files on slow disks."""

_MOST_CHECKS_S: Final = 5.0
_CHECKS_PER_LIMIT: Final = 10
_MAJOR_FAULTS: Final = 9
"""Position in /proc/PID/stat behind the program's name, which may hold spaces (proc(5): field 12,
pages that had to be read from disk)."""


async def kill_when_stalled(worker: WorkerProcess, *, step_timeout_s: Callable[[], float]) -> None:
    """Watch a worker until cancelled, and kill it once it has stalled. `step_timeout_s` is asked
    each time: a reload may have changed it.

    It must have stalled at two checks in a row: after a pause of the whole machine, or of the
    daemon alone, what it has said meanwhile is read in between.
    """
    link = worker.link
    was_stalled, num_read = False, 0
    while True:
        limit_s = step_timeout_s()
        await asyncio.sleep(min(limit_s / _CHECKS_PER_LIMIT, _MOST_CHECKS_S))
        now = time.monotonic()
        if not link.is_loaded:
            before, num_read = num_read, _bytes_read(worker.pid)
            if num_read != before:
                link.load_at = now
            limit_s = max(limit_s, LOAD_TIMEOUT_S)
        is_stalled = link.stalled_s(now) > limit_s
        if is_stalled and was_stalled:
            _kill(worker, link.stalled_s(now), is_loaded=link.is_loaded)
            return
        was_stalled = is_stalled


def _kill(worker: WorkerProcess, stalled_s: float, *, is_loaded: bool) -> None:
    work = "no step" if is_loaded else "no progress in loading"
    logger.error(
        "model %s: worker %d has made %s for %.0f s (it is %s) and is killed",
        worker.model,
        worker.pid,
        work,
        stalled_s,
        _state(worker.pid),
        extra=fields(
            message_id=message_ids.WORKER_STALLED, model=worker.model, worker_pid=worker.pid
        ),
    )
    worker.link.close(WorkerDied(f"the worker of model {worker.model} was stuck and is replaced"))
    worker.kill()


def _bytes_read(pid: int) -> int:
    """Grows while a process reads: with system calls, or pages of mapped files."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        num_faults = int(stat.rpartition(")")[2].split()[_MAJOR_FAULTS])
        with contextlib.suppress(OSError):  # some sandboxes hide it
            counters = Path(f"/proc/{pid}/io").read_text().split()
            return num_faults + int(counters[counters.index("rchar:") + 1])
        return num_faults
    return 0


_STATES: Final = {
    "R": "computing",
    "S": "asleep",
    "D": "waiting for a device",
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
}


def _state(pid: int) -> str:
    """What the kernel says a process does; for the log."""
    with contextlib.suppress(OSError, IndexError):
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return _STATES.get(letter, f"in state {letter}")
    return "gone"
