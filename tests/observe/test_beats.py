"""What systemd hears again and again, and when it hears nothing."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from openclawd.observe import message_ids
from openclawd.observe.beats import Beats
from openclawd.observe.systemd import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Daemon:
    """What the beats are about, and what systemd has heard of it."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.notifier = Notifier()
        self.line, self.trouble, self.is_starting = "one ready", "", False
        self.beats = Beats(
            self.notifier,
            status=lambda: self.line,
            trouble=lambda: self.trouble,
            is_starting=lambda: self.is_starting,
        )

    def heard(self) -> list[str]:
        messages = []
        try:
            while True:
                messages.append(self._listener.recv(4096, socket.MSG_DONTWAIT).decode())
        except BlockingIOError:
            return messages


@pytest.fixture
def daemon(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(folder / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "30000")
        running = Daemon(listener)
        yield running
        running.notifier.close()


def test_a_beat_says_that_all_is_well_and_the_status_once(daemon: Daemon) -> None:
    daemon.beats.beat()
    daemon.beats.beat()
    assert daemon.heard() == ["STATUS=one ready", "WATCHDOG=1", "WATCHDOG=1"]
    daemon.line = "two ready"
    daemon.beats.beat()
    assert daemon.heard() == ["STATUS=two ready", "WATCHDOG=1"]


def test_a_start_that_goes_on_asks_for_time(daemon: Daemon) -> None:
    daemon.is_starting = True
    daemon.beats.beat()
    assert daemon.heard()[1:] == ["WATCHDOG=1", "EXTEND_TIMEOUT_USEC=60000000"]


def test_in_trouble_it_is_silent_and_the_log_says_why_once(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.trouble = "workers that were killed do not end: smollm2"
    daemon.is_starting = True
    daemon.beats.beat()
    daemon.beats.beat()
    assert daemon.heard() == ["STATUS=one ready"]
    (record,) = caplog.records
    assert daemon.trouble in record.getMessage()
    assert message_ids.WATCHDOG_STARVED in str(vars(record))
    daemon.trouble = ""
    daemon.beats.beat()
    assert daemon.heard()[0] == "WATCHDOG=1"


def test_it_beats_faster_than_the_watchdog_bites(daemon: Daemon) -> None:
    async def run() -> None:
        beating = asyncio.create_task(daemon.beats.run())
        heard: list[str] = []
        async with asyncio.timeout(30):
            while heard.count("WATCHDOG=1") < 4:
                await asyncio.sleep(0)
                heard += daemon.heard()
        beating.cancel()

    asyncio.run(run())


def test_without_systemd_it_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    silent = Beats(Notifier(), status=lambda: "", trouble=lambda: "", is_starting=lambda: False)
    asyncio.run(silent.run())
