"""What the kernel says about the other end of a Unix socket: user, process and groups."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from typing import Final

from openclawd.admission.identity import Credentials

SO_PEERGROUPS: Final = {"parisc": 0x4034, "parisc64": 0x4034, "sparc": 0x3D, "sparc64": 0x3D}.get(
    os.uname().machine, 59
)
"""linux/include/uapi/asm-generic/socket.h and its like of these two, since Linux 4.13. Python's
`socket` has no name for it."""

_PEERCRED: Final = struct.Struct("3i")  # pid, uid, gid: `struct ucred`, socket(7)
_GID_BYTES: Final = 4
_MOST_PYTHON_READS: Final = 1024
"""Longest option that `socket.getsockopt` takes: 256 groups. Few callers have as many."""


def credentials_of(sock: socket.socket) -> Credentials:
    """Those that the other end had when it connected. Raises `OSError`."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    pid, uid, gid = _PEERCRED.unpack(raw)
    return Credentials(uid=uid, gid=gid, pid=pid, groups=_groups_of(sock))


def _groups_of(sock: socket.socket) -> tuple[int, ...]:
    """The supplementary groups of the other end; none where the kernel is too old to tell."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _MOST_PYTHON_READS)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return ()
        if error.errno != errno.ERANGE:
            raise
        raw = _long_option(sock)
    return struct.unpack(f"{len(raw) // _GID_BYTES}I", raw)


def _long_option(sock: socket.socket) -> bytes:
    """The same with as many bytes as it takes; the kernel says how many when there are too few."""
    libc = ctypes.CDLL(None, use_errno=True)
    length = ctypes.c_uint32(2 * _MOST_PYTHON_READS)
    while True:
        buffer = ctypes.create_string_buffer(length.value)
        status = libc.getsockopt(
            sock.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, buffer, ctypes.byref(length)
        )
        if status == 0:
            return buffer.raw[: length.value]
        if ctypes.get_errno() != errno.ERANGE or length.value <= len(buffer):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
