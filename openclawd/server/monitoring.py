"""What is watched and offered to other programs: `/metrics`, `/health`, and warnings in the log.

Owns when things are looked at. What is shown is `metrics.py`'s and `health.py`'s.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import TYPE_CHECKING, Final

from openclawd.observe import message_ids
from openclawd.observe.exposition import CONTENT_TYPE
from openclawd.observe.http import HttpServer, Response
from openclawd.observe.logs import fields, log_bug
from openclawd.observe.pressure import ControlGroup, Pressure
from openclawd.server.health import Health, Status
from openclawd.server.meters import ROTATE_EVERY_S
from openclawd.server.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openclawd.config.monitoring import MonitoringConfig
    from openclawd.observe.gpus import Gpu
    from openclawd.server.service import Service

LOOK_EVERY_S: Final = 10.0
_LOOKS_A_ROTATION: Final = round(ROTATE_EVERY_S / LOOK_EVERY_S)

FRESH_S: Final = 0.1
"""An answer of `/metrics` is given again for so long. Making one takes milliseconds of the loop:
whoever may connect could otherwise slow down everybody's streams by asking all the time."""

_INDEX: Final = b"openclawd: see /metrics and /health\n"

logger = logging.getLogger(__name__)


class HealthLog:
    """Says in the log what became worse or better, once."""

    def __init__(self) -> None:
        self._told = Status.OK

    def note(self, health: Health) -> None:
        """Not that the daemon starts or drains: it says so itself."""
        if health.server != "ready" or health.status is self._told:
            return
        if health.status is Status.OK:
            logger.info("healthy again", extra=fields(message_id=message_ids.HEALTHY))
        else:
            logger.warning(
                "health is %s: %s",
                health.status.value,
                health.story(),
                extra=fields(message_id=message_ids.UNHEALTHY, status=health.status.value),
            )
        self._told = health.status


class Monitoring:
    """`http` serves the metrics' socket; `keep` is the task that looks around."""

    def __init__(self, service: Service, config: MonitoringConfig) -> None:
        self._service = service
        self._pressure = Pressure(ControlGroup.own(), warn_share=config.memory_warning)
        self._metrics = Metrics(service, self._pressure, read_gpus=self._read_gpus)
        self._body = b""
        self._rendered_at = float("-inf")
        self._health_log = HealthLog()
        self.http = HttpServer(
            {
                "/": lambda: Response(200, _INDEX),
                "/metrics": self._answer_metrics,
                "/health": self._answer_health,
            }
        )

    def _read_gpus(self) -> Sequence[Gpu]:
        """What was read last."""
        return self._service.fleet.gpus.report.gpus

    async def keep(self) -> None:
        """Look around until cancelled."""
        looked_at, num_looks = time.monotonic(), 0
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now = time.monotonic()
            try:
                self._look(elapsed_s=now - looked_at)
            except Exception:  # whoever watches must not be what the daemon dies of
                log_bug(logger, "looking around failed on a bug")
            looked_at, num_looks = now, num_looks + 1
            if num_looks % _LOOKS_A_ROTATION == 0:
                self._service.meters.rotate()

    def _look(self, *, elapsed_s: float) -> None:
        self._pressure.look(self._read_gpus(), elapsed_s=elapsed_s)
        self._health_log.note(self._service.health())

    def _answer_metrics(self) -> Response:
        now = time.monotonic()
        if now - self._rendered_at >= FRESH_S:
            self._body = self._metrics.render()
            self._rendered_at = now
        return Response(200, self._body, CONTENT_TYPE)

    def _answer_health(self) -> Response:
        """503 takes a machine out of a balancer; one model that cannot be used does not."""
        health = self._service.health()
        status = 503 if health.status is Status.FAILING else 200
        body = json.dumps(health.as_dict(may_see=lambda model: True), indent=2).encode() + b"\n"
        return Response(status, body, "application/json")
