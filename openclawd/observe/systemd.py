"""What systemd is told (sd_notify(3)). Without systemd every call does nothing."""

from __future__ import annotations

import os
import time
from typing import Final

import sdnotify

from openclawd.observe.formats import printable

_SEND_TIMEOUT_S: Final = 5.0
"""What must arrive may hold up the daemon for so long, when systemd does not read its socket.
Everything else is dropped then; the next one says the same."""


class Notifier:
    """The connection to systemd. Takes `NOTIFY_SOCKET` out of the environment, so that no child
    can speak for the daemon."""

    def __init__(self) -> None:
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
