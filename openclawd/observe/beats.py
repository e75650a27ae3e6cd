"""What systemd hears again and again: that all is well, that a start goes on, what `status` shows.

Owns the times. Runs on the daemon's loop, so that a loop which hangs is silent. And it says nothing
when there is a reason not to, however well the loop is: systemd then restarts the service.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from openclawd.observe import message_ids
from openclawd.observe.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from openclawd.observe.systemd import Notifier

logger = logging.getLogger(__name__)

START_PATIENCE_S: Final = 60.0
"""How much longer systemd is asked to wait for the end of the start, at each beat of it."""

_INTERVAL_S: Final = 2.0
_BEATS_PER_WATCHDOG: Final = 3
"""So one may be late, and one lost (sd_watchdog_enabled(3) advises two)."""


class Beats:
    """`status` is the line for `systemctl status`, `trouble` why the daemon is not well (empty: it
    is), `is_starting` whether a start is under way and goes on."""

    def __init__(
        self,
        notifier: Notifier,
        *,
        status: Callable[[], str],
        trouble: Callable[[], str],
        is_starting: Callable[[], bool],
    ) -> None:
        self._notifier = notifier
        self._status = status
        self._trouble = trouble
        self._is_starting = is_starting
        self._told = ""
        self._was_in_trouble = False

    async def run(self) -> None:
        """Beat until cancelled. Returns at once without systemd."""
        notifier = self._notifier
        if not notifier.is_active:
            return
        watchdog_s = notifier.watchdog_s
        interval_s = (
            min(watchdog_s / _BEATS_PER_WATCHDOG, _INTERVAL_S) if watchdog_s else _INTERVAL_S
        )
        while True:
            self.beat()
            await asyncio.sleep(interval_s)

    def show_status(self) -> None:
        """Tell the status, if it is another one."""
        text = self._status()
        if text != self._told:
            self._told = text
            self._notifier.status(text)

    def beat(self) -> None:
        """Say once what is to be said now."""
        self.show_status()
        if trouble := self._trouble():
            if not self._was_in_trouble:
                logger.critical(
                    "systemd is not told any more that all is well: %s",
                    trouble,
                    extra=fields(message_id=message_ids.WATCHDOG_STARVED),
                )
        else:
            self._notifier.alive()
            if self._is_starting():
                self._notifier.extend_timeout(START_PATIENCE_S)
        self._was_in_trouble = bool(trouble)
