"""What people see of the models beside a list: one of them with its memory, and all as they change.

Owns how often somebody who watches hears of it. What there is to see is the fleet's.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from openclawctl.wire.operations import WatchParams
    from openclawd.fleet.model import Model
    from openclawd.server.peer import Exchange
    from openclawd.server.service import Service

REFRESH_S: Final = 1.0
"""Rates and times go on while no state changes."""

PAUSE_S: Final = 0.2
"""Changes come in bursts, such as the progress of a load: they are told together."""


async def show(service: Service, model: Model) -> dict[str, Any]:
    """One model, and the sum of what it takes or would take. Loads nothing."""
    return {
        "model": service.fleet.row(model),
        "memory": await service.fleet.residents.explain(model),
    }


async def watch(service: Service, exchange: Exchange, params: WatchParams) -> dict[str, Any]:
    """Send the models that the caller may see, now and when one changes, until it has heard
    `num_updates` or the daemon stops. A client that does not read misses some."""
    may_see = exchange.peer.principal.may_see
    num_sent = 0
    while True:
        if not exchange.peer.is_slow:
            rows = [row for row in service.fleet.rows() if may_see(row["name"])]
            exchange.event("models", {"models": rows})
            num_sent += 1
        if num_sent == params.num_updates or service.is_draining:
            return {"num_updates": num_sent}
        await service.fleet.wait_change(REFRESH_S)
        await asyncio.sleep(PAUSE_S)
