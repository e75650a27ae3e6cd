"""An alert told by a command: no shell, the facts in environment variables."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Final

from openclawd.notify.delivery import Failed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openclawd.notify.messages import Alert

PREFIX: Final = "OPENCLAW_"

_KEPT_VARIABLES: Final = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ")
"""What of our own environment a command gets."""


async def run_command(alert: Alert) -> None:
    """Run it once, at most `timeout_s`; then its whole process group is killed. Raises `Failed`.

    What it starts in the background and leaves behind when it ends in time goes on.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *alert.command,
            stdin=asyncio.subprocess.DEVNULL,
            env=_environment(alert, os.environ),
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it cannot be run"
        raise Failed(f"it cannot be started: {reason}", is_final=True) from None
    try:
        async with asyncio.timeout(alert.timeout_s):
            status = await process.wait()
    except TimeoutError:
        raise Failed(f"it ran for more than {alert.timeout_s:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if status != 0:
        how = f"exit status {status}" if status > 0 else f"signal {-status}"
        raise Failed(f"it ended with {how}")


def _environment(alert: Alert, inherited: Mapping[str, str]) -> dict[str, str]:
    kept = {name: inherited[name] for name in _KEPT_VARIABLES if name in inherited}
    return kept | {f"{PREFIX}{name.upper()}": str(fact) for name, fact in alert.facts.items()}
