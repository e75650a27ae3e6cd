"""Starting, finding and stopping the daemon's process for people without systemd.

Knows the daemon's command line and what it tells systemd (`sd_notify(3)`), nothing of its insides.
"""

from __future__ import annotations

import importlib.util
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from openclawctl.wire.errors import DeadlineExceeded, Denied, OpenclawError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STOP_TIMEOUT_S: Final = 120.0
"""How long `daemon stop` waits: longer than the daemon lets its requests finish."""

_NOTIFY_BYTES: Final = 4096
_LOG_TAIL_LINES: Final = 15
_LOG_TAIL_BYTES: Final = 64 * 1024
_UNIT: Final = re.compile(r"/(openclawd[^/]*\.service)(?:/|$)")


@dataclass(frozen=True, slots=True)
class Running:
    """The process behind a socket. `unit` is the systemd unit it belongs to, or None."""

    pid: int
    unit: str | None


def daemon_command_line() -> list[str]:
    """How to run `openclawd`: of this installation, or the one on `$PATH`."""
    if importlib.util.find_spec("openclawd") is not None:
        return [sys.executable, "-P", "-m", "openclawd"]  # -P: nothing from the current directory
    program = shutil.which("openclawd")
    if program is None:
        raise OpenclawError(
            "openclawd is not installed here, only its client",
            hint="install it with `pip install 'openclawd[daemon]'`, or the package openclawd",
        )
    return [program]


def find_running(socket_path: str) -> Running | None:
    """Who listens on the socket, as the kernel says. None when nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        try:
            sock.connect(socket_path)
        except PermissionError:
            raise Denied(f"no permission to use the socket {socket_path}") from None
        except OSError:
            return None
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return Running(pid, _unit_of(pid))


def _unit_of(pid: int) -> str | None:
    if pid == 1:
        return "openclawd.socket"  # systemd itself listens, and starts the daemon when asked
    try:
        match = _UNIT.search(Path(f"/proc/{pid}/cgroup").read_text())
    except OSError:
        return None
    return match[1] if match else None


def arguments_of(pid: int) -> list[str]:
    """The arguments that a running daemon was started with."""
    words = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")[:-1]
    for position, word in enumerate(words):
        if os.path.basename(word) == "openclawd":
            return words[position + 1 :]
    raise OpenclawError(f"the process {pid} that listens on the socket is not openclawd")


def start(
    arguments: Sequence[str],
    *,
    log_file: Path,
    on_status: Callable[[str], None],
    timeout_s: float | None,
) -> int:
    """Start the daemon in the background and wait until it is ready. Returns its pid.

    Raises `OpenclawError` with the end of its log if it stops before that, and `DeadlineExceeded`
    (leaving it to go on) after `timeout_s` without a word from it.
    """
    log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="openclawctl-") as folder,  # 0700: nobody else's news
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
        open(log_file, "ab", opener=_private) as log,
    ):
        notify.bind(f"{folder}/notify")
        log_start = log.tell()
        process = subprocess.Popen(
            [*daemon_command_line(), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
            env={**os.environ, "NOTIFY_SOCKET": f"{folder}/notify"},
        )
        if not _wait_ready(process, notify, on_status, timeout_s):
            raise _start_failed(process, log_file, log_start)
    process.returncode = 0  # it lives on; without this Popen would warn that it was not waited for
    return process.pid


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _wait_ready(
    process: subprocess.Popen[bytes],
    notify: socket.socket,
    on_status: Callable[[str], None],
    timeout_s: float | None,
) -> bool:
    """Read notifications until `READY=1` (True) or the end of the process (False)."""
    pidfd = os.pidfd_open(process.pid)
    poller = select.poll()
    poller.register(notify, select.POLLIN)
    poller.register(pidfd, select.POLLIN)
    try:
        while True:
            ready = poller.poll(None if timeout_s is None else timeout_s * 1000)
            if not ready:
                process.returncode = 0
                raise DeadlineExceeded(
                    f"openclawd (pid {process.pid}) has not said anything for {timeout_s:g} s",
                    hint="it goes on starting; see `openclawctl status`",
                )
            if any(fd == notify.fileno() for fd, _ in ready):
                if _is_ready(notify.recv(_NOTIFY_BYTES).decode(errors="replace"), on_status):
                    return True
            else:
                process.wait()
                return False
    except KeyboardInterrupt:
        process.terminate()  # a start that was given up leaves nothing behind
        process.wait()
        raise
    finally:
        os.close(pidfd)


def _is_ready(datagram: str, on_status: Callable[[str], None]) -> bool:
    lines = datagram.splitlines()
    for line in lines:
        if line.startswith("STATUS="):
            on_status(line.removeprefix("STATUS="))
    return "READY=1" in lines


def _start_failed(
    process: subprocess.Popen[bytes], log_file: Path, log_start: int
) -> OpenclawError:
    tail = _tail(log_file, log_start)
    status = process.returncode
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    said = f"; it said:\n{tail}" if tail else ", without a word"
    hint = f"its whole log is {log_file}"
    return OpenclawError(f"openclawd did not start ({how}){said}", hint=hint)


def _tail(log_file: Path, start: int) -> str:
    """The last lines that were written since `start`."""
    with log_file.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - _LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-_LOG_TAIL_LINES:])


def stop(pid: int, *, timeout_s: float) -> None:
    """Ask the daemon to finish its requests and end; wait until it has. Raises `DeadlineExceeded`
    when it takes longer, `Denied` when it is another user's."""
    arguments_of(pid)  # raises for a process that is not openclawd
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if not poller.poll(timeout_s * 1000):
            raise DeadlineExceeded(
                f"openclawd (pid {pid}) is still finishing its requests after {timeout_s:g} s",
                hint=f"wait and look again, or end it with `kill -KILL {pid}`",
            )
    except PermissionError:
        raise Denied(f"openclawd (pid {pid}) runs for another user") from None
    finally:
        os.close(pidfd)
