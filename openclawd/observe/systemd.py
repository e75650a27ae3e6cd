"""What systemd is told (sd_notify(3)), and the sockets that it passes on (sd_listen_fds(3)).
Without systemd every call does nothing."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Final

import sdnotify

from openclawd.printable import printable

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_FIRST_PASSED_FD: Final = 3
"""SD_LISTEN_FDS_START of sd-daemon.h."""

_SEND_TIMEOUT_S: Final = 5.0
"""What must arrive may hold up the daemon for so long, when systemd does not read its socket.
Everything else is dropped then; the next one says the same."""


def take_passed_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """The sockets that systemd opened for this process and goes on holding: they are never to be
    unlinked. Takes what tells of them out of `environ`; no child inherits them. Raises `OSError`
    where one is no socket, or is not there."""
    pid, number = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not number.isdecimal():
        return []
    descriptors = range(_FIRST_PASSED_FD, _FIRST_PASSED_FD + int(number))
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - the standard library's
    return [socket.socket(fileno=descriptor) for descriptor in descriptors]


def _take_watchdog_s(environ: MutableMapping[str, str]) -> float | None:
    """Within which time systemd wants to hear of us, again and again; None if it does not."""
    pid, period_us = environ.pop("WATCHDOG_PID", ""), environ.pop("WATCHDOG_USEC", "")
    is_ours = pid in ("", str(os.getpid())) and period_us.isdecimal()
    return int(period_us) / 1e6 if is_ours else None


class Notifier:
    """The connection to systemd. Takes what leads to it out of the environment, so that no child
    can speak for the daemon. `watchdog_s`: within which time systemd wants to hear `alive()`; None
    if it does not."""

    def __init__(self) -> None:
        self.watchdog_s = _take_watchdog_s(os.environ)
        self._notifier: sdnotify.SystemdNotifier | None = None
        if os.environ.get("NOTIFY_SOCKET"):
            notifier = sdnotify.SystemdNotifier()
            if notifier.socket is not None:  # None: the address leads nowhere
                self._notifier = notifier
        os.environ.pop("NOTIFY_SOCKET", None)

    @property
    def is_active(self) -> bool:
        """Is there a systemd that listens?"""
        return self._notifier is not None

    def ready(self) -> None:
        """The start is over, or a reload."""
        self._send("READY=1", timeout_s=_SEND_TIMEOUT_S)

    def reloading(self) -> None:
        """The configuration is being read again; `ready` says that this is over."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000  # for `Type=notify-reload`
        self._send(f"RELOADING=1\nMONOTONIC_USEC={now_us}")

    def status(self, text: str) -> None:
        """The line `systemctl status` shows."""
        self._send(f"STATUS={printable(text)}")

    def alive(self) -> None:
        """The daemon is well, for now."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        self._send("STOPPING=1", timeout_s=_SEND_TIMEOUT_S)

    def extend_timeout(self, seconds: float) -> None:
        """Ask for this much more time to start or stop, from now on."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}")

    def close(self) -> None:
        if self._notifier is not None:
            self._notifier.socket.close()
            self._notifier = None

    def _send(self, state: str, *, timeout_s: float = 0.0) -> None:
        if self._notifier is not None:
            self._notifier.socket.settimeout(timeout_s)
            # sdnotify encodes as Latin-1 and drops what does not fit; systemd wants UTF-8.
            self._notifier.notify(state.encode(errors="replace").decode("latin-1"))
