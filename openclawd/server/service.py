"""The daemon as its connections see it: who may come in, what is open, what `status` says.

Owns the set of connections and the running sums. Each request's way is `inference.py`'s, each
connection's `peer.py`'s.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import psutil

from openclawctl.wire.errors import ShuttingDown
from openclawctl.wire.operations import Op
from openclawd.admission.connections import ConnectionLimits, check_connection, check_request
from openclawd.admission.identity import check_known, check_model
from openclawd.admission.limit_rules import OnTooLong
from openclawd.admission.limits import TokenLimits
from openclawd.admission.prices import Price, Prices
from openclawd.admission.tiers import DEFAULT_TIER, Priority, Tier
from openclawd.ledger import UsageQuery
from openclawd.server.auditing import Auditing
from openclawd.server.budgets import BudgetDesk, rule_from
from openclawd.server.gate import Gate
from openclawd.server.health import Health, health_of
from openclawd.server.lanes import Lanes
from openclawd.server.limits import limit_rules
from openclawd.server.meters import Meters
from openclawd.server.open_requests import OpenRequests
from openclawd.server.peer import Traffic
from openclawd.server.rates import Rates, rules_of
from openclawd.server.statistics import Statistics
from openclawd.server.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from pathlib import Path

    from openclawctl.wire.errors import Problem
    from openclawctl.wire.operations import UsageParams, UsageRowsParams
    from openclawctl.wire.sampling import Sampling
    from openclawd.admission.budget_rules import Alert
    from openclawd.admission.budget_rules import Counter as BudgetCounter
    from openclawd.admission.identity import Caller, Credentials, Principal
    from openclawd.config import Config
    from openclawd.fleet.model import Model
    from openclawd.fleet.registry import Fleet
    from openclawd.ledger import Ledger
    from openclawd.observe.alerts import AlertSender
    from openclawd.server.identities import Identities
    from openclawd.server.names import Names
    from openclawd.server.peer import Exchange, Peer

_NEEDS_NO_MODEL = frozenset(
    {
        Op.PING,
        Op.STATUS,
        Op.MODELS,
        Op.SHOW,
        Op.WATCH,
        Op.USAGE,
        Op.USAGE_ROWS,
        Op.INSIGHTS,
        Op.WHOAMI,
        Op.KEYS_LIST,
        Op.BUDGETS,
        Op.AUDIT,
        Op.AUDIT_VERIFY,
    }
)
"""What is still answered while the daemon drains."""


class Service:
    """Everything a request's handler needs. `alerts` tells people of budgets.

    `answer` serves one request (`dispatch.answer`).
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
        alerts: AlertSender,
        identities: Identities,
        names: Names,
    ) -> None:
        self.fleet = fleet
        self.ledger = ledger
        self.alerts = alerts
        self.audit = Auditing(ledger.audit)
        self._token_limits: dict[Model, TokenLimits] = {}
        self._take(config)
        self.lanes = Lanes()
        self.open_requests = OpenRequests()
        self.gate = Gate()
        self.budgets = BudgetDesk(
            [rule_from(budget.plain()) for budget in config.budgets],
            ledger.budget_counters(now=time.time()) if config.budgets else (),
            note_alerts=ledger.note_alerts,
            on_alert=self._tell_alert,
        )
        self.totals = Totals()
        self.meters = Meters()
        for name in ("", *config.models):
            self.meters.expect(name)
        self.traffic = Traffic()
        self.rates = Rates(rules_of(config.rate_limits))
        self.statistics = Statistics(fleet, ledger)
        self._answer = answer
        self.version = version
        self.server_name = f"openclawd {version}"
        self.is_ready = False
        self.is_draining = False
        self._socket_path = socket_path
        self.reload: Callable[[Peer | None], Awaitable[dict[str, Any]]]
        """Reads the configuration again (`Reloader.reload`); set by the daemon."""
        self.identities = identities
        self.keys_lock = asyncio.Lock()
        self._names = names
        self.started_at = time.time()
        self._peers: dict[Peer, str] = {}
        """Every connection, and whose it counts as."""
        self._num_connections: Counter[str] = Counter()
        self._num_requests: Counter[str] = Counter()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._sessions: asyncio.TaskGroup | None = None

    def start(self, sessions: asyncio.TaskGroup) -> None:
        """Give the connections' tasks their owner."""
        self._sessions = sessions
        self.audit.start()

    def _take(self, config: Config) -> None:
        """What is looked up at every request."""
        limits = config.resource_limits
        self._config = config
        self._token_limits.clear()
        self.limit_rules = limit_rules(config.limits)
        self.prices = _prices(config)
        self.tiers = _tiers(config)
        self.hello_timeout_s = limits.hello_timeout_s
        self.max_frame_bytes = limits.max_frame_bytes
        self._limits = ConnectionLimits(
            max_connections=limits.max_connections,
            reserved_for_admins=limits.reserved_admin_connections,
            max_connections_per_user=limits.max_connections_per_user,
            max_requests_per_connection=limits.max_requests_per_connection,
            max_requests_per_user=limits.max_requests_per_user,
        )

    def apply(self, config: Config, counters: Sequence[BudgetCounter]) -> None:
        """Go on by another configuration, of which the fleet has the models already. `counters` are
        what the ledger has of budgets. What is open goes on by what it was let in under; who has
        less rights now is refused from the next request on."""
        self._take(config)
        self.rates.replace_rules(rules_of(config.rate_limits))
        self.budgets.replace_rules(
            [rule_from(budget.plain()) for budget in config.budgets], counters
        )
        self.identities.apply(config)
        for peer in list(self._peers):
            self._look_again_at(peer)

    def _look_again_at(self, peer: Peer) -> None:
        """Give an open connection the rights that it has by now."""
        if peer.key_prefix:
            peer.principal = self.identities.of_key(peer.principal, peer.key_prefix)
        elif peer.is_recognised:

            def become(caller: Caller) -> None:
                if not peer.key_prefix:
                    peer.principal = self.identities.of_caller(caller)

            self.recognise(peer.credentials, become)

    def now(self) -> float:
        """The monotonic clock, in seconds."""
        return asyncio.get_running_loop().time()

    # ---- connections (peer.Host) ----

    def admit(self, peer: Peer, credentials: Credentials) -> None:
        """Let a connection in of which only numbers are known. Raises `Overloaded`."""
        self._count(peer, f"uid:{credentials.uid}", is_admin=True)  # perhaps it is one

    def recognise(self, credentials: Credentials, then: Callable[[Caller], object]) -> None:
        """Find the names of a caller. `then` is called now, or on the loop once they are there."""
        caller = self._names.known(credentials)
        if caller is None:
            self._names.look_up(credentials, then)
        else:
            then(caller)

    def identify(self, peer: Peer, caller: Caller) -> Principal:
        """Whom the kernel names. Raises `Overloaded`, and `Denied` for a stranger whom no `hello`
        can help: there are no keys."""
        principal = self.identities.of_caller(caller)
        if not self.identities.keys:
            check_known(principal)
        self._count(peer, principal.name, is_admin=principal.is_admin)
        return principal

    def greet(self, peer: Peer, key: str | None) -> Principal:
        """Whom the connection speaks for. Raises `Denied` or `Overloaded`."""
        principal, peer.key_prefix = self.identities.of_hello(peer.principal, key)
        self._count(peer, principal.name, is_admin=principal.is_admin)
        return principal

    def _count(self, peer: Peer, name: str, *, is_admin: bool) -> None:
        """Count a connection as somebody's, where there is room for one more of theirs."""
        num_of_user = self._num_connections[name] + (self._peers.get(peer) != name)
        num_all = len(self._peers) + (peer not in self._peers)
        check_connection(num_all, num_of_user, self._limits, is_admin=is_admin)
        self.forget(peer)
        self._peers[peer] = name
        self._num_connections[name] += 1

    def forget(self, peer: Peer) -> None:
        """A connection is gone; one that was never admitted is none of ours."""
        if (name := self._peers.pop(peer, None)) is not None:
            self._num_connections[name] -= 1
            if not self._num_connections[name]:
                del self._num_connections[name]

    def note_refused(self, peer: Peer, problem: Problem) -> None:
        """A connection, or its `hello`, was refused."""
        self.audit.refused_connection(peer.credentials, problem, app=peer.app)

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
        """May this request be served now? Raises `Denied` where its key is none any more,
        `Overloaded` or `ShuttingDown`."""
        peer = exchange.peer
        if peer.key_prefix:
            self.identities.check_key(peer.key_prefix)
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
        self.fleet.note_change()
        for peer in list(self._peers):
            peer.say_goodbye(reason)

    def cancel_all(self, problem: Problem) -> int:
        """Cancel what is open; returns how many requests that were."""
        exchanges = [exchange for peer in self._peers for exchange in peer.exchanges]
        for exchange in exchanges:
            exchange.cancel(problem)
        return len(exchanges)

    def cancel_of_key(self, name: str, problem: Problem, *, but: Exchange) -> int:
        """Cancel what is open by an API key, `but` one; returns how many requests that were."""
        open_ones = [each for peer in self._peers for each in peer.exchanges]
        of_key = [each for each in open_ones if each.peer.principal.key == name and each is not but]
        for exchange in of_key:
            exchange.cancel(problem)
        return len(of_key)

    def close_connections(self) -> None:
        """Close every connection once its bytes are sent."""
        for peer in list(self._peers):
            peer.close()

    def abort_connections(self) -> None:
        """Close every connection at once."""
        for peer in list(self._peers):
            peer.abort()

    # ---- what handlers ask ----

    def model_for(self, principal: Principal, name: str | None) -> Model:
        """The model that a request of this principal means: the one way from a name to a model.
        Raises `Denied`, `NotFound` or `InvalidRequest`.

        Refused by its name before anything is looked for, so that nobody learns which models there
        are that are not theirs.
        """
        own_name = self.fleet.name_of(name, may_see=principal.may_see)
        check_model(principal, own_name)
        return self.fleet.resolve(own_name, may_see=principal.may_see)

    def limits_of(self, model: Model) -> TokenLimits:
        """The token limits of a model; before it is loaded, with the configured context."""
        config, load = self.fleet.config_of(model), model.spec.load
        context = min(load.context, model.info.get("context", load.context))
        known = self._token_limits.get(model)
        if known is None or (known.context, known.parallel) != (context, load.parallel):
            known = self._token_limits[model] = TokenLimits(
                model=model.name,
                context=context,
                max_input_tokens=self._config.max_input_tokens_for(config),
                max_output_tokens=self._config.max_output_tokens_for(config),
                parallel=load.parallel,
                on_too_long=OnTooLong.parse(self._config.on_too_long_for(config)),
            )
        return known

    def tier_of(self, caller: Principal) -> Tier:
        """The tier of a caller; the default one for a key whose own is not there any more."""
        return self.tiers.get(caller.tier, self.tiers[DEFAULT_TIER.name])

    def sampling_of(self, model: Model) -> Sampling:
        """The sampling defaults of a model."""
        return self._config.sampling_for(self.fleet.config_of(model))

    def prefix_domain_of(self, model: Model, caller: Principal) -> str:
        """Whose requests may share computed prefixes with this caller's. By default only their own:
        times and `cached_tokens` would tell one user what another one's prompts begin with."""
        shares_with_all = self.fleet.config_of(model).prefix_sharing == "all"
        return "" if shares_with_all else caller.name

    def _tell_alert(self, alert: Alert) -> None:
        """A budget has reached one of its shares; the journal has it already."""
        charge = alert.charge
        self.alerts.alert(
            {
                "budget": charge.budget,
                "principal": charge.bucket,
                "window": charge.shape,
                "share": alert.share / 1000,
                "used": alert.used,
                "limit": alert.limit,
                "reset_at": alert.reset_at,
            }
        )

    async def usage(self, params: UsageParams, caller: Principal) -> dict[str, Any]:
        """Sums of the ledger, of all requests or of the caller's own. Raises `Unavailable`."""
        query = UsageQuery.of(
            params, now=time.time(), principal=_whose(caller), currency=self.prices.currency
        )
        return await self.ledger.usage(query)

    async def usage_rows(self, params: UsageRowsParams, caller: Principal) -> dict[str, Any]:
        """Ended requests, of all or of the caller's own. Raises `Unavailable`."""
        return await self.ledger.rows(
            after_seq=params.after_seq, limit=params.limit, principal=_whose(caller)
        )

    def whoami(self, peer: Peer) -> dict[str, Any]:
        """Who is asking, what they may do, and what they have left."""
        principal = peer.principal
        limits = self._limits
        return {
            **self.identities.whoami(principal, peer.key_prefix),
            "models": [model.name for model in self.fleet.models if principal.may_use(model.name)],
            "limits": {
                "max_connections": limits.max_connections_per_user,
                "max_requests": limits.max_requests_per_user,
                "max_requests_per_connection": limits.max_requests_per_connection,
            },
            "left": {
                "budgets": self.budgets.rows(principal.subject()),
                "rate_limits": [asdict(each) for each in self.rates.standing(principal.subject())],
            },
        }

    def budget_rows(self, caller: Principal) -> list[dict[str, Any]]:
        """What `budgets` answers: a caller's own, or everybody's to who may see that."""
        return self.budgets.rows(None if caller.sees_everybody else caller.subject())

    def status(
        self, caller: Principal, *, with_latency: bool, with_requests: bool
    ) -> dict[str, Any]:
        """What `status` answers. Never waits."""
        models = list(self.fleet.models)
        rows = [row for row in self.fleet.rows() if caller.may_see(row["name"])]
        if with_latency:
            rows = [{**row, "latency": self.meters.latency(row["name"])} for row in rows]
        return {
            "server": {
                "version": self.version,
                "pid": os.getpid(),
                "state": self._state(),
                "drain": self.gate.row(),
                "socket": str(self._socket_path),
                "started_at": self.started_at,
                "uptime_s": round(time.time() - self.started_at, 3),
            },
            "connections": {"open": len(self._peers), "max": self._limits.max_connections},
            "requests": {
                "running": sum(model.turns.num_running for model in models),
                "queued": sum(model.turns.num_waiting for model in models),
                "finished": self.totals.num_finished,
                "failed": self.totals.num_failed,
                **(self.open_requests.report(caller) if with_requests else {}),
            },
            "tokens": {
                "prompt": self.totals.prompt_tokens,
                "completion": self.totals.completion_tokens,
                "per_s": round(self.totals.tokens_per_s(now=self.now()), 1),
            },
            "models": rows,
            **self.fleet.gpus.report.row(),
            "health": self.health().as_dict(may_see=caller.may_see),
            "memory_bytes": int(psutil.Process().memory_info().rss),
            "principal": caller.name,
        }

    def health(self) -> Health:
        """Are tokens coming, or is nothing asked?"""
        return health_of(
            list(self.fleet.models),
            server=self._state(),
            ledger_problem=self.ledger.problem,
        )

    @property
    def num_connections(self) -> int:
        return len(self._peers)

    @property
    def max_connections(self) -> int:
        return self._limits.max_connections

    def load_summary(self) -> str:
        """How busy it is, in a few words."""
        models = list(self.fleet.models)
        running = sum(model.turns.num_running for model in models)
        queued = sum(model.turns.num_waiting for model in models)
        tokens_per_s = self.totals.tokens_per_s(now=self.now())
        return f"{running} running, {queued} queued, {tokens_per_s:.0f} tokens/s"

    def _state(self) -> str:
        if self.is_draining:
            return "draining"
        return self.gate.state if self.is_ready else "starting"


def _whose(caller: Principal) -> str | None:
    """Whose requests a caller is shown: everybody's (None), or their own."""
    return None if caller.sees_everybody else caller.name


def _prices(config: Config) -> Prices:
    of_models = {name: Price(**price.rates()) for name, price in config.prices.items()}
    return Prices(config.currency, of_models)


def _tiers(config: Config) -> dict[str, Tier]:
    return {
        name: Tier(
            name,
            weight=tier.weight,
            priority=Priority[tier.priority.upper()],
            max_priority=Priority[tier.max_priority.upper()],
        )
        for name, tier in config.tiers.items()
    }
