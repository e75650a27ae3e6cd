"""Reading the configuration again, and going on by it without ending a request.

Owns what is applied in which order, and what is said of it. All of it happens in one go on the
loop, once the new configuration has been read and checked: one that is wrong changes nothing. How
models change is the fleet's, how limits and rights do `Service.apply`'s.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import InvalidRequest
from openclawd.config import ConfigError
from openclawd.observe import logs
from openclawd.observe.alerts import AlertTarget
from openclawd.server.listener import StartError, raise_descriptor_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from openclawd.admission.budget_rules import Counter as BudgetCounter
    from openclawd.config import Config
    from openclawd.config.notify import NotifyConfig
    from openclawd.server.peer import Peer
    from openclawd.server.service import Service

logger = logging.getLogger(__name__)

MAX_FINDINGS: Final = 50
"""Mistakes that are told; whoever made more finds them with `openclawctl config check`."""

_AT_START: Final[dict[str, Callable[[Config], object]]] = {
    "security.socket_group": lambda config: config.security.wanted_socket_group(),
    "logging.format": lambda config: config.logging.format,
    "logging.file": lambda config: config.logging.file,
    "logging.syslog": lambda config: config.logging.syslog,
    "monitoring": lambda config: config.monitoring,
    "fetch.directory": lambda config: config.fetch_directory,
    "fetch.token_file": lambda config: config.fetch.token_file,
    "fetch.allow_loopback_http": lambda config: config.fetch.allow_loopback_http,
    "fetch.copy_to": lambda config: config.fetch.copy_to,
}
"""What is looked at when the daemon starts, and not again."""


class Reloader:
    """The configuration in use. `read` reads and checks the one there is by now, and blocks;
    `remedy` is what to do when that finds mistakes; `origin` is where a configuration came from,
    for the audit."""

    def __init__(
        self,
        service: Service,
        config: Config,
        *,
        read: Callable[[], Config],
        remedy: str,
        origin: Callable[[Config], dict[str, str]],
    ) -> None:
        self.config = config
        self._service = service
        self._read = read
        self._remedy = remedy
        self._origin = origin
        self._lock = asyncio.Lock()

    async def reload(self, peer: Peer | None) -> dict[str, Any]:
        """Open the log file anew, read the configuration, and apply it. `peer` is whose request it
        is; None for a signal. Returns the names of models that are other ones now, and warnings.

        Raises `InvalidRequest`, with every mistake and its line, and `Unavailable` for the ledger.
        """
        async with self._lock:
            logs.reopen()
            try:
                config = await asyncio.to_thread(self._read)
            except ConfigError as error:
                origin = self._origin(self.config)
                self._note(origin, peer, code=InvalidRequest.code, problem=_shown(error, 5))
                raise _refusal(error, self._remedy) from None
            counters: list[BudgetCounter] = []
            if config.budgets:
                ledger = self._service.ledger
                counters = await asyncio.to_thread(ledger.budget_counters, now=time.time())
            return self._apply(config, counters, peer)

    def _apply(
        self, config: Config, counters: list[BudgetCounter], peer: Peer | None
    ) -> dict[str, Any]:
        """Everything at once: no request sees half of it."""
        service, old = self._service, self.config
        origin = self._origin(config)
        warnings = list(_warnings(old, config))
        change = service.fleet.apply(config)
        service.apply(config, counters)
        service.alerts.aim(alert_target(config.notify))
        logs.set_level(config.logging.level)
        self.config = config
        models = {"added": change.added, "removed": change.removed, "changed": change.changed}
        self._note(
            origin, peer, **{name: ", ".join(names) for name, names in models.items() if names}
        )
        for warning in warnings:
            logger.warning("%s", warning)
        logger.info("the configuration was applied: %s", _summary(models))
        return {**models, "warnings": warnings}

    def _note(
        self, origin: dict[str, str], peer: Peer | None, *, code: str = "", **detail: Any
    ) -> None:
        """Who applied, or tried to, which configuration."""
        self._service.audit.note(action="config", code=code, detail={**origin, **detail}, peer=peer)


def alert_target(notify: NotifyConfig) -> AlertTarget:
    """Whom the configuration has told of alerts."""
    return AlertTarget(
        tuple(notify.command), notify.webhook, timeout_s=notify.timeout_s, retries=notify.retries
    )


def _refusal(error: ConfigError, remedy: str) -> InvalidRequest:
    return InvalidRequest(
        "the new configuration cannot be used, and nothing has changed:\n"
        + _shown(error, MAX_FINDINGS),
        hint=remedy,
    )


def _shown(error: ConfigError, most: int) -> str:
    """So many of the findings, one on each line."""
    findings = [str(finding) for finding in error.findings]
    rest = [f"and {len(findings) - most} more"] if len(findings) > most else []
    return "\n".join([*findings[:most], *rest])


def _warnings(old: Config, new: Config) -> Iterator[str]:
    """What of the new configuration is not in effect."""
    for name, value_of in _AT_START.items():
        if value_of(old) != value_of(new):
            yield f"{name} takes effect when the daemon is started again"
    try:
        raise_descriptor_limit(new.resource_limits.max_connections)
    except StartError as error:
        yield str(error)


def _summary(models: dict[str, list[str]]) -> str:
    told = [f"{what} {', '.join(names)}" for what, names in models.items() if names]
    return "models: " + "; ".join(told) if told else "no model is another one"
