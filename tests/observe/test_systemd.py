"""What systemd receives, and that nothing happens without it."""

import os
import socket
import time

import pytest

from openclawd.observe.systemd import Notifier, take_passed_sockets


@pytest.fixture
def systemd(folder, monkeypatch):
    """The receiving end of `NOTIFY_SOCKET`."""
    path = folder / "notify"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(path))
    listener.settimeout(10)
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    yield listener
    listener.close()


@pytest.fixture
def notifier(systemd):
    notifier = Notifier()
    yield notifier
    notifier.close()


@pytest.mark.parametrize(
    ("call", "state"),
    [
        (lambda notifier: notifier.ready(), "READY=1"),
        (lambda notifier: notifier.stopping(), "STOPPING=1"),
        (lambda notifier: notifier.status("loading smollm2"), "STATUS=loading smollm2"),
        (lambda notifier: notifier.status("lädt … 50 %"), "STATUS=lädt … 50 %"),
        (lambda notifier: notifier.status("a\nREADY=1"), "STATUS=a\\nREADY=1"),
        (lambda notifier: notifier.extend_timeout(2.5), "EXTEND_TIMEOUT_USEC=2500000"),
        (lambda notifier: notifier.alive(), "WATCHDOG=1"),
    ],
)
def test_messages(systemd, notifier, call, state):
    call(notifier)
    assert systemd.recv(4096).decode() == state


def test_children_cannot_speak_for_the_daemon(notifier):
    assert "NOTIFY_SOCKET" not in os.environ
    assert notifier.is_active


def test_an_abstract_address(monkeypatch):
    name = f"openclawd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notifier = Notifier()
        notifier.ready()
        assert listener.recv(4096) == b"READY=1"
        notifier.close()


def test_without_systemd_nothing_happens(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notifier = Notifier()
    notifier.ready()
    notifier.status("x")
    notifier.close()
    assert not notifier.is_active


# sdnotify forgets the socket that it could not connect.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_address_that_leads_nowhere_is_no_systemd(monkeypatch, tmp_path):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    notifier = Notifier()
    notifier.ready()
    assert not notifier.is_active
    assert "NOTIFY_SOCKET" not in os.environ


def test_a_systemd_that_went_away_is_no_error(systemd, notifier):
    systemd.close()
    notifier.ready()


def test_a_systemd_that_does_not_read_holds_up_nothing(systemd, notifier):
    for number in range(1000):  # the kernel keeps ten messages; the test would time out
        notifier.status(f"{number}")
    assert systemd.recv(4096) == b"STATUS=0"
    notifier.ready()


@pytest.mark.parametrize(
    ("pid", "period", "expected"),
    [
        ("", "30000000", 30.0),
        ("own", "500000", 0.5),
        ("1", "30000000", None),  # meant for another process
        ("", "", None),
        ("", "soon", None),
    ],
)
def test_the_watchdogs_period(monkeypatch, pid, period, expected):
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    monkeypatch.setenv("WATCHDOG_USEC", period)
    assert Notifier().watchdog_s == expected
    assert not {"WATCHDOG_PID", "WATCHDOG_USEC"} & set(os.environ)


def test_sockets_that_were_passed_to_another_process_are_not_taken():
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x", "HOME": "/"}
    assert take_passed_sockets(environ) == []
    assert environ == {"HOME": "/"}


def test_a_reload_says_since_when_and_ends_with_ready(systemd, notifier):
    notifier.reloading()
    first, since = systemd.recv(1000).decode().splitlines()
    assert first == "RELOADING=1"
    now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert 0 <= now_us - int(since.removeprefix("MONOTONIC_USEC=")) < 60_000_000
    notifier.ready()
    assert systemd.recv(1000) == b"READY=1"
