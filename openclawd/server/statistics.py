"""What the daemon writes down once a minute for `insights`, and how it answers that operation.

Owns the counts between two writes. Statistics are no account: what cannot be written is let go, and
the next minute writes newer numbers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import Denied, Problem
from openclawd.ledger.insights import ModelSize
from openclawd.ledger.model_peaks import Peaks
from openclawd.ledger.prefix_use import DAY_S, PrefixCounts
from openclawd.observe.logs import log_bug

if TYPE_CHECKING:
    from openclawctl.wire.operations import InsightsParams
    from openclawd.admission.identity import Principal
    from openclawd.fleet.registry import Fleet
    from openclawd.ledger import Ledger
    from openclawd.ledger.prefix_use import PrefixUse

logger = logging.getLogger(__name__)

WRITE_INTERVAL_S: Final = 60.0


class Statistics:
    """How prompts begin and how much of each model is in use. All calls on the loop."""

    def __init__(self, fleet: Fleet, ledger: Ledger) -> None:
        self._fleet = fleet
        self._ledger = ledger
        self._prefixes = PrefixCounts()

    def note_prompt(self, use: PrefixUse) -> None:
        """An inference request has ended. Never waits."""
        self._prefixes.note(use)

    async def keep(self) -> None:
        """Write every minute, until cancelled."""
        while True:
            await asyncio.sleep(WRITE_INTERVAL_S)
            try:
                await self.write()
            except Exception:  # statistics must not be what the daemon dies of
                log_bug(logger, "writing statistics failed on a bug")

    async def write(self) -> None:
        """Write what was counted since the last time; a disk that refuses it is logged."""
        day = int(time.time() // DAY_S)
        rows = self._prefixes.take(day=day)
        peaks = self._take_peaks()
        if not rows and not peaks:
            return
        try:
            await self._ledger.note_statistics(rows, peaks, day=day)
        except Problem as problem:
            logger.warning("a minute of statistics is lost: %s", problem)

    async def insights(self, params: InsightsParams, caller: Principal) -> dict[str, Any]:
        """The result of the `insights` operation. Whoever is no admin sees his own use only. Raises
        `Denied`, `NotFound`, `Unavailable` and `DeadlineExceeded`."""
        principal = _visible(params.principal, caller)
        model = params.model and self._fleet.resolve(params.model, may_see=caller.may_see).name
        await self.write()
        report = await self._ledger.insights(
            self._sizes(), since_s=params.since_s, principal=principal, model=model
        )
        return {
            "since_s": params.since_s,
            "principal": principal,
            "model": model,
            **report.as_dict(),
        }

    def _take_peaks(self) -> list[Peaks]:
        return [
            Peaks(
                model=model.name,
                slots=taken.slots,
                context=taken.context,
                kv_tokens=taken.kv_tokens,
            )
            for model in self._fleet.models
            if (taken := model.peaks.take())
        ]

    def _sizes(self) -> list[ModelSize]:
        return [
            ModelSize(
                model=model.name,
                parallel=model.spec.load.parallel,
                context=model.spec.load.context,
                kv_tokens=model.spec.load.kv_tokens,
                sharing=self._fleet.config_of(model).prefix_sharing,
            )
            for model in self._fleet.models
        ]


def _visible(principal: str | None, caller: Principal) -> str | None:
    """Whose use a caller is shown; None is everybody's. Raises `Denied`."""
    if caller.sees_everybody:
        return principal
    if principal not in (None, caller.name):
        raise Denied(
            f"{caller.name} may see its own use, not that of {principal}",
            hint="leave the principal out, or ask an administrator",
        )
    return caller.name
