"""The command line in this process, in a process of its own, and on a terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from client import peer as peer_module

from openclawctl import cli

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROGRAM = [sys.executable, "-m", "openclawctl"]


class Answer(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _isolated_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No configuration of the person who runs the tests, and the commands of this installation."""
    for name in ("OPENCLAWD_API_KEY_FILE", "XDG_RUNTIME_DIR", "OPENCLAWD_SOCKET", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.fixture
def wire() -> Any:
    """The module `client/peer.py`: results to answer with."""
    return peer_module


@pytest.fixture
def peer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """`peer(script)` or `peer(handler=…)` starts a scripted daemon, which every command finds."""
    running: list[Any] = []

    def start(script: Any = None, *, handler: Any = None) -> Any:
        daemon = peer_module.Peer(folder / "d.sock", script or peer_module.answering(handler))
        monkeypatch.setenv("OPENCLAWD_SOCKET", str(daemon.path))
        running.append(daemon.__enter__())
        return daemon

    yield start
    for daemon in running:
        daemon.__exit__(None, None, None)


@pytest.fixture
def ctl(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Answer]:
    """`ctl("status", stdin="…")` runs one command here."""

    def run(*args: str, stdin: str | bytes = "") -> Answer:
        piped = tmp_path / "stdin"
        piped.write_bytes(stdin if isinstance(stdin, bytes) else stdin.encode())
        with piped.open() as file:
            monkeypatch.setattr(sys, "stdin", file)
            capsys.readouterr()
            status = cli.run(args)
        return Answer(status, *capsys.readouterr())

    return run
