"""The daemon as its connections see it: who may come in, what is open, what `status` says.

Owns the set of connections and the running sums. Each request's way is `inference.py`'s, each
connection's `peer.py`'s.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import psutil

from openclawctl.wire.errors import ShuttingDown
from openclawctl.wire.operations import Op
from openclawd.admission.connections import ConnectionLimits, check_connection, check_request
from openclawd.admission.identity import Credentials, Principal, identify
from openclawd.admission.limits import TokenLimits
from openclawd.server.statistics import Statistics
from openclawd.server.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from pathlib import Path

    from openclawctl.wire.errors import Problem
    from openclawctl.wire.operations import UsageParams
    from openclawctl.wire.sampling import Sampling
    from openclawd.config import Config
    from openclawd.fleet.model import Model
    from openclawd.fleet.registry import Fleet
    from openclawd.ledger import Ledger
    from openclawd.server.peer import Exchange, Peer

_NEEDS_NO_MODEL = frozenset({Op.PING, Op.STATUS, Op.MODELS, Op.USAGE, Op.INSIGHTS})
"""What is still answered while the daemon drains."""


class Service:
    """Everything a request's handler needs.

    `answer` serves one request (`dispatch.answer`); `names` maps user ids to user names.
    """

    def __init__(
        self,
        config: Config,
        fleet: Fleet,
        ledger: Ledger,
        *,
        answer: Callable[[Service, Exchange], Awaitable[None]],
        version: str,
        socket_path: Path,
        names: dict[int, str],
    ) -> None:
        limits = config.resource_limits
        self.fleet = fleet
        self.ledger = ledger
        self.totals = Totals()
        self.statistics = Statistics(fleet, ledger)
        self._answer = answer
        self.version = version
        self.server_name = f"openclawd {version}"
        self.hello_timeout_s = limits.hello_timeout_s
        self.max_frame_bytes = limits.max_frame_bytes
        self.is_ready = False
        self.is_draining = False
        self._config = config
        self._socket_path = socket_path
        self._names = names
        self._limits = ConnectionLimits(
            max_connections=limits.max_connections,
            reserved_for_admins=limits.reserved_admin_connections,
            max_connections_per_user=limits.max_connections_per_user,
            max_requests_per_connection=limits.max_requests_per_connection,
            max_requests_per_user=limits.max_requests_per_user,
        )
        self._started_at = time.time()
        self._peers: set[Peer] = set()
        self._num_connections: Counter[str] = Counter()
        self._num_requests: Counter[str] = Counter()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._sessions: asyncio.TaskGroup | None = None

    def start(self, sessions: asyncio.TaskGroup) -> None:
        """Give the connections' tasks their owner."""
        self._sessions = sessions

    def now(self) -> float:
        """The monotonic clock, in seconds."""
        return asyncio.get_running_loop().time()

    # ---- connections (peer.Host) ----

    def admit(self, peer: Peer, caller: Credentials) -> Principal:
        """Let a connection in. Raises `Denied` or `Overloaded`."""
        principal = identify(caller, own_uid=os.geteuid(), names=self._names)
        num_of_user = self._num_connections[principal.name] + 1
        check_connection(len(self._peers) + 1, num_of_user, principal, self._limits)
        self._peers.add(peer)
        self._num_connections[principal.name] += 1
        return principal

    def forget(self, peer: Peer) -> None:
        """A connection is gone; one that was never admitted is none of ours."""
        if peer in self._peers:
            self._peers.remove(peer)
            self._num_connections[peer.principal.name] -= 1

    def welcome_limits(self) -> dict[str, Any]:
        return {
            "max_frame_bytes": self.max_frame_bytes,
            "max_requests_per_connection": self._limits.max_requests_per_connection,
        }

    def run_session(self, session: Coroutine[Any, Any, None]) -> None:
        assert self._sessions is not None, "start() comes first"
        self._sessions.create_task(session)

    async def begin(self, exchange: Exchange) -> None:
        """Serve one request and count it while it is open."""
        user = exchange.peer.principal.name
        self._num_requests[user] += 1
        self._is_idle.clear()
        try:
            await self._answer(self, exchange)
        finally:
            self._num_requests[user] -= 1
            if not self._num_requests.total():
                self._is_idle.set()

    def check_request(self, exchange: Exchange, op: Op) -> None:
        """May this request be served now? Raises `Overloaded` or `ShuttingDown`."""
        peer = exchange.peer
        check_request(peer.num_open, self._num_requests[peer.principal.name], self._limits)
        if self.is_draining and op not in _NEEDS_NO_MODEL:
            raise ShuttingDown(
                "the daemon is stopping and takes no more requests",
                hint="try again once it has been started again",
                retry_after_s=5.0,
            )

    # ---- the end ----

    async def wait_idle(self) -> None:
        """Until no request is open."""
        await self._is_idle.wait()

    def drain(self, reason: str) -> None:
        """Take no more requests, and tell every client so."""
        self.is_draining = True
        for peer in list(self._peers):
            peer.say_goodbye(reason)

    def cancel_all(self, problem: Problem) -> int:
        """Cancel what is open; returns how many requests that were."""
        exchanges = [exchange for peer in self._peers for exchange in peer.exchanges]
        for exchange in exchanges:
            exchange.cancel(problem)
        return len(exchanges)

    def close_connections(self) -> None:
        """Close every connection once its bytes are sent."""
        for peer in list(self._peers):
            peer.close()

    def abort_connections(self) -> None:
        """Close every connection at once."""
        for peer in list(self._peers):
            peer.abort()

    # ---- what handlers ask ----

    def limits_of(self, model: Model) -> TokenLimits:
        """The token limits of a model; before it is loaded, with the configured context."""
        config = self.fleet.config_of(model)
        return TokenLimits(
            model=model.name,
            context=min(config.context, model.info.get("context", config.context)),
            max_input_tokens=self._config.max_input_tokens_for(config),
            max_output_tokens=self._config.max_output_tokens_for(config),
            parallel=config.parallel,
        )

    def sampling_of(self, model: Model) -> Sampling:
        """The sampling defaults of a model."""
        return self._config.sampling_for(self.fleet.config_of(model))

    def prefix_domain_of(self, model: Model, caller: Principal) -> str:
        """Whose requests may share computed prefixes with this caller's. By default only their own:
        times and `cached_tokens` would tell one user what another one's prompts begin with."""
        shares_with_all = self.fleet.config_of(model).prefix_sharing == "all"
        return "" if shares_with_all else caller.name

    def note_tokens(self, num_tokens: int) -> None:
        self.totals.note_tokens(num_tokens, now=self.now())

    async def usage(self, params: UsageParams) -> dict[str, Any]:
        """Sums of the ledger. Raises `Unavailable`."""
        return await self.ledger.usage(params.by, since_s=params.since_s, now=time.time())

    def status(self, caller: Principal) -> dict[str, Any]:
        """What `status` answers. Never waits."""
        models = list(self.fleet.models)
        return {
            "server": {
                "version": self.version,
                "pid": os.getpid(),
                "state": self._state(),
                "socket": str(self._socket_path),
                "started_at": self._started_at,
                "uptime_s": round(time.time() - self._started_at, 3),
            },
            "connections": {"open": len(self._peers), "max": self._limits.max_connections},
            "requests": {
                "running": sum(model.turns.num_running for model in models),
                "queued": sum(model.turns.num_waiting for model in models),
                "finished": self.totals.num_finished,
                "failed": self.totals.num_failed,
            },
            "tokens": {
                "prompt": self.totals.prompt_tokens,
                "completion": self.totals.completion_tokens,
                "per_s": round(self.totals.tokens_per_s(now=self.now()), 1),
            },
            "models": self.fleet.rows(),
            "memory_bytes": int(psutil.Process().memory_info().rss),
            "principal": caller.name,
        }

    def _state(self) -> str:
        if self.is_draining:
            return "draining"
        return "ready" if self.is_ready else "starting"
