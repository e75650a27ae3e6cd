"""`python -m openclawd.worker --fd N [--cpus LIST]`: the worker process.

Owns on which CPUs it runs: it binds itself before it has a second thread, and so nothing of it ever
runs elsewhere. What is imported here must start none; the libraries that do are imported later.

Owns its threads: the main thread reads the pipe, the engine thread loads the model and computes,
the tokeniser thread prepares requests. The process ends on `stop`, when the pipe closes, when its
parent dies, or when the model fails; SIGTERM and SIGINT are ignored, because the daemon drains
first.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Final, NoReturn

from openclawctl.wire.errors import RemoteProtocolError
from openclawd.worker.log import start_logging
from openclawd.worker.messages import (
    EXIT_LOAD_FAILED_FOR_NOW,
    EXIT_STOPPED,
    SAVE_S,
    Abort,
    Drop,
    Load,
    Prepare,
    Reprioritize,
    Start,
    Stop,
)
from openclawd.worker.pipe import DaemonGone, Pipe
from openclawd.worker.serve import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

EXIT_BUG: Final = 1
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_STOP_S: Final = 2.0
"""How long a running step may hold up the end. Nothing is lost when it is cut off."""

_TOKENIZER_STACK_BYTES: Final = 64 * 1024 * 1024
"""llama.cpp splits some vocabularies' text with std::regex, whose recursion is as deep as the text
is long. Only what is used of it costs memory."""

_log = logging.getLogger(__name__)


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="python -m openclawd.worker", allow_abbrev=False)
    parser.add_argument("--fd", type=int, required=True, help="the worker's end of a socketpair")
    parser.add_argument("--cpus", help="run on these only, such as 0,1,8")
    arguments = parser.parse_args()
    fd = arguments.fd
    _die_with_parent()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    start_logging()
    if arguments.cpus:
        _bind(arguments.cpus)
    pipe = Pipe(socket.socket(fileno=fd))
    _exit(_guarded(lambda: _serve(pipe)))


def _bind(cpus: str) -> None:
    """Run on these CPUs, with every thread there will be. One that went away since the daemon chose
    it (hotplug, a cpuset that was made smaller) may come back: then the daemon tries again."""
    wanted = {int(number) for number in cpus.split(",")}
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, wanted)
    # The kernel is content with those that are there.
    if os.sched_getaffinity(0) != wanted:
        _log.error("it cannot be bound to the CPUs %s: not all of them are there", cpus)
        _exit(EXIT_LOAD_FAILED_FOR_NOW)


def _serve(pipe: Pipe) -> int:
    first = pipe.receive()
    if not isinstance(first, Load):
        raise RemoteProtocolError(f"the first message is {first.type!r}, not 'load'")
    worker = Worker(first, pipe.send)
    engine = threading.Thread(
        target=lambda: _exit(_guarded(worker.run_engine)), name="engine", daemon=True
    )
    engine.start()
    threading.stack_size(_TOKENIZER_STACK_BYTES)
    threading.Thread(
        target=lambda: _guarded(worker.run_tokenizer, on_bug=_exit), name="tokenizer", daemon=True
    ).start()
    with contextlib.suppress(DaemonGone):
        _read(pipe, worker)
    worker.stop()
    engine.join(_STOP_S)  # it ends the process itself when it gets there first
    if worker.is_saving:
        engine.join(SAVE_S)
    return EXIT_STOPPED


def _read(pipe: Pipe, worker: Worker) -> None:
    """Hand out messages until `stop`. Raises `DaemonGone`, and `RemoteProtocolError` for a bug."""
    while True:
        match message := pipe.receive():
            case Stop():
                return
            case Prepare() | Drop():
                worker.submit_to_tokenizer(message)
            case Start() | Reprioritize() | Abort():
                worker.submit_to_engine(message)
            case Load():
                raise RemoteProtocolError("a worker loads one model, and has one")


def _guarded(run: Callable[[], int], on_bug: Callable[[int], object] | None = None) -> int:
    """The exit status of a thread's work. A bug is logged with its story."""
    try:
        return run()
    except DaemonGone:
        return EXIT_STOPPED
    except Exception:
        _log.exception("the worker failed")
        if on_bug is not None:
            on_bug(EXIT_BUG)
        return EXIT_BUG


def _exit(status: int) -> NoReturn:
    """End the process at once, from any thread. Not `sys.exit`: that would wait for native code
    that cannot be interrupted, and free what other threads still use."""
    sys.stderr.flush()
    os._exit(status)


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies. The parent may have died before that
    was arranged; then the process has another one by now, or its pipe is closed."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(EXIT_STOPPED)


if __name__ == "__main__":
    main()
