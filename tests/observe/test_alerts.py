"""The daemon's side: a helper of its own or systemd's socket, and never a wait."""

from __future__ import annotations

import json
import shlex
import socket
from typing import TYPE_CHECKING

import pytest
from harness import wait_until

from openclawd.observe.alerts import AlertSender, AlertTarget

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EVENT = {"budget": "research", "principal": "user:alice", "share": 0.8}


@pytest.fixture
def sender(folder: Path, tmp_path: Path) -> Iterator[AlertSender]:
    """Writes budgets into a file, by the helper."""
    script = f"echo $OPENCLAW_BUDGET >> {shlex.quote(str(tmp_path / 'out'))}"
    target = AlertTarget(("/bin/sh", "-c", script))
    made = AlertSender(target, folder / "notify.sock")
    yield made
    made.close()


def test_it_starts_a_helper_and_another_one_when_that_has_died(
    sender: AlertSender, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    sender.alert(EVENT)
    wait_until(out.exists, what="the first alert")
    helper = sender._helper
    assert helper is not None
    helper.kill()
    helper.wait()
    sender.alert({**EVENT, "budget": "two"})
    sender.close()
    assert out.read_text() == "research\ntwo\n"


def test_nobody_to_tell_starts_nothing(folder: Path) -> None:
    sender = AlertSender(AlertTarget(), folder / "notify.sock")
    sender.alert(EVENT)
    assert sender._helper is None
    sender.close()


def test_systemds_socket_is_used_and_a_helper_that_does_not_read_holds_up_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(folder / "notify.sock"))
        target = AlertTarget(webhook="https://example.org/hook", timeout_s=3.0, retries=1)
        sender = AlertSender(target, folder / "notify.sock")
        for _ in range(2000):  # the kernel keeps some; the test would time out
            sender.alert(EVENT)
        assert json.loads(listener.recv(4096)) == {
            **EVENT,
            "command": [],
            "webhook": "https://example.org/hook",
            "timeout_s": 3.0,
            "retries": 1,
        }
        sender.close()
    assert "an alert of budget research could not be handed to openclawd-notify" in caplog.text


def test_a_socket_that_nobody_listens_on_is_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(folder / "notify.sock"))
    sender = AlertSender(AlertTarget(("/bin/true",)), folder / "notify.sock")
    sender.alert(EVENT)
    assert "Connection refused" in caplog.text
    sender.close()
