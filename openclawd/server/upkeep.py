"""Keeping the ledger in order: what the `ledger.*` operations answer, and what happens every day.

A backup goes into the folder `backups` of the state directory and the answer says where that is. A
path given by a client would let whoever may ask for a backup write anywhere the daemon may; the
bytes over the socket would take a second format and hold up everybody else's frames.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import Problem
from openclawd.ledger.storage import storage_errors
from openclawd.observe import message_ids
from openclawd.observe.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from openclawd.ledger import Ledger

logger = logging.getLogger(__name__)

PRUNE_INTERVAL_S: Final = 86_400.0


async def check(ledger: Ledger) -> dict[str, Any]:
    """The result of `ledger.check`. Raises `Unavailable`."""
    report = await ledger.check()
    for finding in report.findings:
        extra = fields(message_id=message_ids.LEDGER_UNSOUND)
        logger.error("the ledger is not sound: %s", finding, extra=extra)
    return {
        "findings": report.findings,
        "rows": report.num_rows,
        "open": len(report.open_ids),
        "seq": report.seq,
        "bytes": _size(ledger.path),
    }


async def prune(ledger: Ledger, older_than_s: float) -> dict[str, Any]:
    """The result of `ledger.prune`. Raises `Unavailable`."""
    before = _size(ledger.path)
    num_rows = await ledger.prune(time.time() - older_than_s)
    after = _size(ledger.path)
    if num_rows:
        logger.info("deleted %d old requests from the ledger: %d bytes", num_rows, before - after)
    return {"rows": num_rows, "bytes_before": before, "bytes_after": after}


async def back_up(ledger: Ledger) -> dict[str, Any]:
    """The result of `ledger.backup`. Raises `Unavailable`."""
    path = await ledger.back_up()
    logger.info("copied the ledger to %s", path)
    return {"path": str(path), "bytes": _size(path)}


async def keep_pruned(ledger: Ledger, keep_usage_s: Callable[[], float]) -> None:
    """Delete what is older than it may get by then, now and once a day, until it is cancelled."""
    while True:
        try:
            if math.isfinite(keep_s := keep_usage_s()):
                await prune(ledger, keep_s)
        except Problem as problem:
            logger.warning("old requests stay in the ledger until tomorrow: %s", problem)
        await asyncio.sleep(PRUNE_INTERVAL_S)


def _size(path: Path) -> int:
    with storage_errors(path):
        return path.stat().st_size
