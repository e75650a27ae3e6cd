"""The port at which `openclawd-metrics` offers the metrics."""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import Final

import psutil

from openclawd.doctor.findings import Finding, State

ADDRESS: Final = "127.0.0.1"
_OURS: Final = ("openclawd-metrics", "openclawd.metrics")
_INIT_PID: Final = 1  # systemd, which listens for it


def check_port(port: int) -> Finding:
    """Root sees who has it; everybody sees whether it is taken."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((ADDRESS, port))
            sock.listen(1)  # two may bind, one may listen
    except OSError as error:
        return _taken(port, error)
    return Finding("port", State.OK, f"port {port} is free for openclawd-metrics")


def _taken(port: int, error: OSError) -> Finding:
    if error.errno != errno.EADDRINUSE:
        message = f"openclawd-metrics cannot listen on port {port}: {error.strerror}"
        return Finding("port", State.WARNING, message, "choose another one with its --listen")
    holders = _holders(port)
    if any(_is_ours(process) for process in holders):
        return Finding("port", State.OK, f"openclawd-metrics listens on port {port}")
    who = ", ".join(f"{process.name()} (pid {process.pid})" for process in holders)
    message = f"port {port} is taken by {who or 'a program of another user'}"
    remedy = (
        f"end that program, or give openclawd-metrics another port: `--listen {ADDRESS}:PORT`, or"
        " `systemctl edit openclawd-metrics.socket`, and the same in prometheus.yml"
    )
    return Finding("port", State.WARNING, f"{message}: openclawd-metrics cannot have it", remedy)


def _holders(port: int) -> list[psutil.Process]:
    pids = {
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr
        and connection.laddr.port == port
        and connection.pid is not None
    }
    found = []
    for pid in sorted(pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


def _is_ours(process: psutil.Process) -> bool:
    if process.pid == _INIT_PID:
        return True
    with contextlib.suppress(psutil.Error):
        return any(name in word for word in process.cmdline() for name in _OURS)
    return False
