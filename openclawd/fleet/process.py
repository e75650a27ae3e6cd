"""One worker process: a fresh interpreter, its pipe and its standard error.

Owns how a worker is started, watched and ended. Knows nothing of what it computes.

Times: `stop()` asks over the pipe, waits `STOP_TIMEOUT_S` and what it may take to save prefixes,
then kills. Workers ignore SIGTERM, so
there is no step in between. A worker dies with the daemon: it asks the kernel for SIGKILL on the
parent's death and sees its pipe close.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from openclawctl.wire.errors import Internal
from openclawd.observe.logs import fields
from openclawd.worker.messages import SAVE_S, Stop

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from openclawd.fleet.link import Link

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S: Final = 5.0
WORKER_NICENESS: Final = 1
"""Workers yield to the daemon, so that `status` and cancels are answered while all cores decode. By
one step only: beside a busy program at 0 that leaves them four fifths of its share (the kernel's
weights are 820 and 1024, sched_prio_to_weight), where 5 would leave a third (335)."""

WORKER_OOM_SCORE: Final = 500
"""Out of 1000, on top of the share of memory in use (proc(5), oom_score_adj): when memory runs out
the kernel takes a worker, which is started again, before the daemon or anything else."""

KILL_GRACE_S: Final = 30.0
"""How long a killed worker may take to be gone. One that hangs in a driver never is; then systemd
hears no more of the daemon, and restarts it."""

_MAX_STDERR_LINE: Final = 4096
_STDERR_LINES_KEPT: Final = 20
_PRIORITY_PREFIX = re.compile(r"<([0-7])>")
_LEVELS: Final = {
    **dict.fromkeys(range(4), logging.ERROR),
    4: logging.WARNING,
    5: logging.INFO,
    6: logging.INFO,
    7: logging.DEBUG,
}

_TUNABLES: Final = "GLIBC_TUNABLES"

_GIVING_BACK: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(2**20),
    _TUNABLES: "glibc.malloc.hugetlb=1",
}
"""glibc asks for huge pages wherever 2 MiB or more are taken at once: weights, KV cells, buffers
(glibc manual, "Memory Allocation Tunables"). With pages of 4 KiB a processor looks a page's address
up for every 4 KiB of weights that a step reads; docs/performance.md has what that costs.

glibc gives allocations of this size back to the system when they are freed. By itself it raises
that bound to the largest that was ever freed, up to 32 MiB, and megabytes that are freed in another
order than they were taken in leave holes: 6,000 of 0.5 to 30 MB, a few at a time, left a process
with 199 MiB, with this bound 51 (measured 2026-11-23; mallopt(3), M_MMAP_THRESHOLD)."""

_KEEPING: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**26),
}
"""What glibc's own bounds become for who frees a lot. Each operation of torch takes megabytes and
gives them back soon: from the system every time, that is a tenth of the time of a prompt (measured
2026-11-30, two cores of an EPYC)."""

_MALLOC: Final = {"torch": _KEEPING}
"""What becomes of freed memory in the workers of a backend; of any other, `_GIVING_BACK`."""

_THREAD_COUNTS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""How many threads the libraries of a worker make of themselves (GNU libgomp manual, OpenBLAS
README, oneMKL guide): as many as it has CPUs, whatever the daemon was started with."""

_BOUND: Final = {"OMP_PROC_BIND": "true", "OMP_PLACES": "threads"}
"""A CPU for each compute thread, where there are as many (OpenMP 5.2, 21.1.3 and 21.1.6). Woken
after a pause, a second thread is often put on the CPU of the first, which waits for it awake, and
moved to the idle one when the kernel looks for such things: the first token of a small model so
came 5 to 10 ms later (docs/performance.md)."""

# What systemd or a caller gave the daemon and no worker may have.
_PRIVATE_VARIABLES: Final = frozenset(
    {
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "CREDENTIALS_DIRECTORY",
        "OPENCLAWD_API_KEY_FILE",
    }
)


@dataclass(slots=True)
class WorkerProcess:
    """A running worker. `link` is its pipe; `last_words` the end of its standard error."""

    model: str
    process: asyncio.subprocess.Process
    pidfd: int | None
    link: Link
    last_words: deque[str]
    killed_at: float | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_beyond_help(self) -> bool:
        """Was it killed, and is it still there?"""
        return self.killed_at is not None and time.monotonic() - self.killed_at > KILL_GRACE_S

    async def wait_exit(self) -> int:
        """Log its standard error until it ends; returns the exit status (negative: a signal)."""
        assert self.process.stderr is not None
        try:
            while line := await _read_line(self.process.stderr):
                self._log_line(line.decode(errors="replace").rstrip())
            return await self.process.wait()
        finally:
            self.kill()  # lives on only if the daemon's own end cancelled the wait
            if self.pidfd is not None:  # None: a bug cut short that it was waited for before
                os.close(self.pidfd)
                self.pidfd = None

    async def stop(self) -> None:
        """Ask it to exit, and kill it when it has not done so in time."""
        timeout_s = STOP_TIMEOUT_S + SAVE_S
        self.link.send(Stop())
        try:
            async with asyncio.timeout(timeout_s):
                await self.process.wait()
        except TimeoutError:
            logger.warning(
                "model %s: worker %d did not stop within %.0f s and is killed",
                self.model,
                self.pid,
                timeout_s,
            )
            self.kill()
            await self.process.wait()

    def kill(self) -> None:
        """SIGKILL, if it still lives.

        Through a pidfd: `Process.kill()` of the standard library polls first, and so can take the
        exit status away from asyncio's child watcher.
        """
        if self.pidfd is None:
            return
        if self.killed_at is None:
            self.killed_at = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def _log_line(self, line: str) -> None:
        match = _PRIORITY_PREFIX.match(line)
        level = _LEVELS[int(match[1])] if match else logging.WARNING
        text = line[match.end() :] if match else line
        if level >= logging.WARNING:
            self.last_words.append(text)
        logger.log(level, "%s", text, extra=fields(model=self.model, worker_pid=self.pid))


async def spawn(
    model: str,
    link: Link,
    *,
    backend: str,
    devices: Sequence[str] | None,
    cpus: Collection[int],
    num_threads: int | None,
) -> WorkerProcess:
    """Start a worker for a model and connect `link` to it. `devices` are the GPUs it can see: every
    one (empty) or none (None). `cpus` empty leaves it all of the daemon's; else it binds itself to
    them before it has a second thread. `num_threads` are to compute; None: one for each CPU.

    Raises `OSError`.
    """
    ours, theirs = socket.socketpair()
    with theirs, contextlib.ExitStack() as on_failure:
        on_failure.callback(ours.close)
        ours.settimeout(0)  # asyncio wants it non-blocking
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the directory the daemon was started in is no place to import from
            "-m",
            "openclawd.worker",
            "--fd",
            str(theirs.fileno()),
            *(["--cpus", ",".join(map(str, sorted(cpus)))] if cpus else []),
            pass_fds=[theirs.fileno()],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=_MAX_STDERR_LINE,
            env=_environment(os.environ, backend, devices, cpus=cpus, num_threads=num_threads),
            start_new_session=True,  # Ctrl-C on a terminal is for the daemon, which drains
        )
        on_failure.pop_all()
    with contextlib.suppress(OSError):  # it may have died already; its exit status tells
        _offer_to_oom_killer(process.pid)
        os.setpriority(os.PRIO_PROCESS, process.pid, WORKER_NICENESS)  # refused if we are nicer
    await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=ours)
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError as error:  # without its pipe it ends by itself, should it still live
        link.close(Internal("the worker could not be watched"))
        raise OSError(f"it ended before it could be watched ({error.strerror})") from None
    return WorkerProcess(model, process, pidfd, link, deque(maxlen=_STDERR_LINES_KEPT))


def _offer_to_oom_killer(pid: int) -> None:
    """Raises `OSError`."""
    Path(f"/proc/{pid}/oom_score_adj").write_text(f"{WORKER_OOM_SCORE}\n")


def worker_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """What a process of ours that runs others' native code may have of our environment."""
    return {k: v for k, v in inherited.items() if k not in _PRIVATE_VARIABLES}


def _environment(
    inherited: Mapping[str, str],
    backend: str,
    devices: Sequence[str] | None,
    *,
    cpus: Collection[int],
    num_threads: int | None,
) -> dict[str, str]:
    own = _MALLOC.get(backend, _GIVING_BACK)
    environment = {**own, **worker_environment(inherited)}
    if _TUNABLES in inherited and _TUNABLES in own:  # the last one of a name counts
        environment[_TUNABLES] = f"{own[_TUNABLES]}:{inherited[_TUNABLES]}"
    if backend == "llama" and num_threads in (None, len(cpus or os.sched_getaffinity(0))):
        environment = _BOUND | environment
    # By itself CUDA counts the fastest first; indexes of the configuration are nvidia-smi's.
    environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if devices is None:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    elif devices:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    if cpus:
        environment.update(dict.fromkeys(_THREAD_COUNTS, str(len(cpus))))
    return environment


async def _read_line(stream: asyncio.StreamReader) -> bytes:
    """One line, cut at `_MAX_STDERR_LINE`; empty at the end."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError as error:
        return await stream.read(max(error.consumed, 1))
