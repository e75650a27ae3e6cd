"""The way from the daemon to `openclawd-notify`, which runs commands and webhooks for it.

Owns where the helper is and how it is started when systemd does not. Never waits: an alert that the
helper does not take in is logged and dropped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from openclawd.observe import message_ids
from openclawd.observe.logs import fields

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CLOSE_TIMEOUT_S: Final = 7.0
"""How long a helper that we started may take to end; it needs 5 s at most."""

_KEPT_VARIABLES: Final = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "JOURNAL_STREAM"),
    *("PYTHONPATH", "SSL_CERT_FILE", "SSL_CERT_DIR"),
)
"""What of our environment the helper gets: no credentials."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AlertTarget:
    """Who is told, and how hard it is tried. Without command and webhook nobody is."""

    command: tuple[str, ...] = ()
    webhook: str | None = None
    timeout_s: float = 10.0
    retries: int = 3


class AlertSender:
    """Sends alerts to the socket at `path`, or to a helper of our own where there is none."""

    def __init__(self, target: AlertTarget, path: Path) -> None:
        self._target = target
        self._path = path
        self._socket: socket.socket | None = None
        self._helper: subprocess.Popen[bytes] | None = None

    def aim(self, target: AlertTarget) -> None:
        """Tell these from now on."""
        self._target = target

    def alert(self, event: Mapping[str, Any]) -> None:
        """Tell whoever is to be told. `event` has `budget`, `principal`, `window`, `share`, `used`,
        `limit`, `reset_at`: names and numbers, no text of prompts. Never waits, never raises."""
        target = self._target
        if not target.command and target.webhook is None:
            return
        message = {
            **event,
            "command": list(target.command),
            "webhook": target.webhook,
            "timeout_s": target.timeout_s,
            "retries": target.retries,
        }
        try:
            self._send(json.dumps(message).encode())
        except OSError as error:
            logger.error(
                "an alert of budget %s could not be handed to openclawd-notify: %s",
                event.get("budget"),
                error.strerror,
                extra=fields(message_id=message_ids.ALERT_LOST),
            )

    def close(self) -> None:
        """Let a helper that we started end. Blocks for `CLOSE_TIMEOUT_S` at most."""
        self._disconnect()
        helper, self._helper = self._helper, None
        if helper is not None:
            try:
                helper.wait(CLOSE_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                helper.kill()
                helper.wait()

    def _send(self, data: bytes) -> None:
        """Once more through a new connection, if the helper has gone. Raises `OSError`."""
        if self._socket is not None:
            try:
                self._socket.send(data)
            except BlockingIOError:
                raise
            except OSError:
                self._disconnect()
            else:
                return
        self._socket = self._connect() if self._path.is_socket() else self._start()
        self._socket.send(data)

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            sock.settimeout(0)
            sock.connect(str(self._path))
        except OSError:
            sock.close()
            raise
        return sock

    def _start(self) -> socket.socket:
        """A helper that ends with our end of the pair."""
        if self._helper is not None:
            self._helper.poll()  # takes the exit status of one that has died
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, contextlib.ExitStack() as on_failure:
            on_failure.callback(ours.close)
            ours.settimeout(0)
            self._helper = subprocess.Popen(
                [sys.executable, "-P", "-m", "openclawd.notify", "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
                start_new_session=True,  # Ctrl-C on a terminal is for the daemon
            )
            on_failure.pop_all()
        return ours

    def _disconnect(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()
