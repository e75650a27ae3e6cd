"""The daemon's socket in the file system: made, guarded against a second daemon, removed.

Invariants: a socket that another daemon answers on is never touched; a stale one is replaced; the
socket is 0660 from its first moment, and never open to everybody. One that systemd passed on is
systemd's: it stays when the daemon goes, and whoever connects meanwhile waits in it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import socket
import stat
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BACKLOG = 1024
"""Connections the kernel keeps while the loop is busy; the kernel cuts it to net.core.somaxconn."""

_SPARE_DESCRIPTORS = 256
"""Beside one a connection: workers' pipes, the ledger, logs."""

_MAX_SOCKET_PATH_BYTES = 107
"""`sun_path` holds 108 bytes with its end (unix(7))."""


SERVER_OPTIONS: Final[dict[str, Any]] = (
    {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
)
"""For `create_unix_server`, which from Python 3.13 on would unlink any socket it served."""


UNIT_NEEDS: Final = "its unit needs one ListenStream=, with a path, and Accept=no"
"""The socket unit of systemd."""


class StartError(Exception):
    """The daemon cannot start; `str()` is the whole sentence for the administrator."""


def raise_descriptor_limit(max_connections: int) -> None:
    """Connections take descriptors; the soft limit is often 1024. Raises `StartError`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections + _SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise StartError(
                f"resource_limits.max_connections is {max_connections}, but this process may open "
                f"only {hard} files; lower it, or raise LimitNOFILE= in the unit"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextlib.contextmanager
def hold_lock(path: Path, *, what: str) -> Iterator[None]:
    """Keep other daemons off `what` until the block ends. Raises `StartError`.

    The lock is the kernel's and goes with the process; the file stays, since removing it would let
    two daemons lock two different files of the same name.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StartError(f"cannot open the lock file {path}: {error.strerror}") from None
    try:
        _lock(descriptor, what)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, what: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        raise StartError(
            f"another openclawd (pid {pid or 'unknown'}) uses {what}; stop it first, or give this "
            "one its own --socket and --state-dir"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


@contextlib.contextmanager
def open_socket(path: Path, *, gid: int | None = None) -> Iterator[socket.socket]:
    """A listening socket at `path`, removed again when the block ends; with `gid`, that group's.
    Raises `StartError`."""
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH_BYTES:
        raise StartError(
            f"the socket path {path} is longer than {_MAX_SOCKET_PATH_BYTES} bytes, the most that "
            "Linux allows; choose a shorter --socket"
        )
    with hold_lock(path.with_name(path.name + ".lock"), what=f"the socket {path}"):
        _remove_stale(path)
        sock = _bind(path, gid)
        with sock:
            try:
                yield sock
            finally:
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def only_listener(passed: list[socket.socket]) -> Iterator[socket.socket]:
    """The one socket that systemd passed on; closed when the block ends, and nothing else. Raises
    `StartError` if there are more, or it is of another kind."""
    with contextlib.ExitStack() as stack:
        for sock in passed:
            stack.enter_context(sock)
        if len(passed) != 1:
            raise StartError(
                f"systemd passed on {len(passed)} sockets and openclawd listens on one; see the "
                "socket units that name this service"
            )
        (sock,) = passed
        is_stream = sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM
        if not is_stream or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise StartError(
                "the socket that systemd passed on is no listening Unix stream socket; "
                + UNIT_NEEDS
            )
        name = sock.getsockname()
        if not name or isinstance(name, bytes):
            raise StartError(
                f"the socket that systemd passed on has no path, or an abstract one; {UNIT_NEEDS}"
            )
        yield sock


def _bind(path: Path, gid: int | None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old_umask = os.umask(0o117)
    try:
        sock.bind(str(path))
        if gid is not None:
            os.chown(path, -1, gid)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise StartError(f"cannot listen on {path}: {error.strerror}") from None
    finally:
        os.umask(old_umask)
    return sock


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on. Whoever holds the lock may do that; a server that
    does not use our lock is asked by connecting."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StartError(f"{path} exists and is not a socket; move it away or choose --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        result = probe.connect_ex(str(path))
    if result == errno.ECONNREFUSED:
        path.unlink(missing_ok=True)
    elif result != errno.ENOENT:
        raise StartError(
            f"something answers on {path} already ({os.strerror(result) if result else 'open'}); "
            "stop it first, or choose another --socket"
        )
