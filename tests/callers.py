"""Callers of other users: connections that the kernel reports as theirs. Needs root.

The kernel takes `SO_PEERCRED` and `SO_PEERGROUPS` when a socket connects. So a short-lived child
becomes somebody else, connects, and hands the connection over.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from harness import RawClient

from openclawctl.wire.connection import Connection, Role
from openclawctl.wire.messages import Done, Error, Hello

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from openclawctl.wire.messages import Message

NOBODY = 65534
"""The uid and gid of nobody, and a group that every system has."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

_CONNECT = """
import array, os, socket, sys
path, fd, uid, gid, groups = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
os.setgroups([int(group) for group in groups.split(",") if group])
os.setgid(gid)
os.setuid(uid)
sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
sock.connect(path)
back = socket.socket(fileno=fd)
socket.send_fds(back, [b"x"], [sock.fileno()])
"""


def connect_as(path: Path, uid: int, gid: int, groups: Sequence[int] = ()) -> socket.socket:
    """A connection to a Unix socket, made by this user with these groups."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        numbers = [str(theirs.fileno()), str(uid), str(gid), ",".join(map(str, groups))]
        command = [sys.executable, "-I", "-S", "-c", _CONNECT, str(path), *numbers]
        subprocess.run(command, pass_fds=[theirs.fileno()], check=True, timeout=30)
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    return socket.socket(fileno=descriptors[0])


class Caller(RawClient):
    """A raw client on a connection that somebody else has made. `first` is what the daemon answered
    to its `hello`."""

    def __init__(self, sock: socket.socket, *, key: str | None = None, app: str = "") -> None:
        self.socket = sock
        self.socket.settimeout(30)
        self.connection = Connection(Role.CLIENT)
        self.send(Hello(version=1, client="test", key=key, app=app or None))
        self.first: Message | None = self.next()
        self._num_asked = 0

    def ask(self, op: str, /, **params: object) -> Done | Error:
        """One request and its end."""
        self._num_asked += 1
        self.request(self._num_asked, op, **params)
        answer = self.next_of_any(Done, Error)
        assert isinstance(answer, Done | Error)
        return answer
