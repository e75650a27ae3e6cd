"""What the kernel says about callers of other users, on real sockets."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
from callers import NOBODY, connect_as, needs_root

from openclawd.server.credentials import credentials_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def listener(folder: Path) -> Iterator[socket.socket]:
    folder.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "s"))
        (folder / "s").chmod(0o777)  # of this test's own socket; the daemon's is never so
        sock.listen()
        yield sock


@needs_root
@pytest.mark.parametrize(
    "groups", [(), (NOBODY,), (5, 7, 9), tuple(range(1000, 1256)), tuple(range(1000, 1257))]
)
def test_user_and_all_groups_of_a_caller(
    listener: socket.socket, folder: Path, groups: tuple[int, ...]
) -> None:
    with connect_as(folder / "s", 64001, 64002, groups):
        accepted, _ = listener.accept()
        with accepted:
            found = credentials_of(accepted)
    assert (found.uid, found.gid, found.groups) == (64001, 64002, groups)
    assert found.pid != os.getpid()


@needs_root
def test_a_great_many_groups(listener: socket.socket, folder: Path) -> None:
    groups = tuple(range(100_000, 115_000))
    with connect_as(folder / "s", 64001, 64002, groups):
        accepted, _ = listener.accept()
        with accepted:
            assert credentials_of(accepted).groups == groups


def test_our_own(listener: socket.socket, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(folder / "s"))
        accepted, _ = listener.accept()
        with accepted:
            found = credentials_of(accepted)
    assert (found.uid, found.gid, found.pid) == (os.geteuid(), os.getegid(), os.getpid())
    assert set(found.groups) == set(os.getgroups())
