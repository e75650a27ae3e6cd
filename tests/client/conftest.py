"""The scripted daemon of `peer.py` as a fixture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from client import peer as peer_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _isolated_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No configuration of the person who runs the tests."""
    for name in ("OPENCLAWD_SOCKET", "OPENCLAWD_API_KEY_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def wire() -> Any:
    """The module `peer.py`: results and vectors to answer with."""
    return peer_module


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`peer(script)` or `peer(handler=…)` starts a scripted daemon; stopped after the test."""
    running: list[Any] = []

    def start(script: Any = None, *, handler: Any = None, name: str = "d.sock") -> Any:
        chosen = script or peer_module.answering(handler)
        daemon = peer_module.Peer(tmp_path / name, chosen)
        running.append(daemon.__enter__())
        return daemon

    yield start
    for daemon in reversed(running):
        daemon.__exit__(None, None, None)
