"""One model as its users see it: its state, who uses it, who waits for it, and its replicas.

Owns which replicas there are and whether they are wanted; what a worker does is `replica.py`'s.
Knows no client and no token; requests hold the model through `lease()` and take turns at it through
`turns`.

Invariants: the model is ready as soon as one replica is; everyone who waits for it hears of every
change of a replica; it is unloaded for being idle only when no lease is held.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import NotFound
from openclawctl.wire.fields import suggestion
from openclawctl.wire.units import format_duration
from openclawd.fleet.peaks import Peaks
from openclawd.fleet.replica import Replica
from openclawd.fleet.spec import ModelSpec, ModelState
from openclawd.fleet.turns import Turns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from openclawd.fleet.link import Link
    from openclawd.fleet.placement import CoreAllocator
    from openclawd.worker.messages import Loading

PATIENCE_S: Final = 5.0
"""A request waits for a model in backoff when it is tried again within this time; else it is told
when to come back."""

_FURTHEST_FIRST: Final = (
    ModelState.READY,
    ModelState.LOADING,
    ModelState.DRAINING,
    ModelState.BACKOFF,
    ModelState.FAILED,
    ModelState.UNLOADED,
)
"""Which replica's state is the model's."""


class Model:
    """A model of the fleet. `run()` is its one task, owned by the fleet."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        cores: CoreAllocator,
        on_change: Callable[[Model], None],
        max_waiting: int,
        max_skips: int,
    ) -> None:
        self.spec = spec
        self._cores = cores
        self._on_change = on_change
        self.info: dict[str, Any] = {}
        """What the worker that was ready last said of the model."""
        self.turns = Turns(
            model=spec.name,
            max_running=spec.load.parallel,
            max_waiting=max_waiting,
            max_skips=max_skips,
        )
        self.one_suspect_at_a_time = asyncio.Lock()
        self.peaks = Peaks()
        self.replicas = [self._new_replica()]
        self._num_leases = 0
        self._keep_alive_timer: asyncio.TimerHandle | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self._num_hopeful = 0

    def _new_replica(self) -> Replica:
        return Replica(self.spec, title=f"model {self.name}", cores=self._cores, owner=self)

    # ---- questions ----

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def state(self) -> ModelState:
        return self._leading.state

    @property
    def reason(self) -> str:
        return self._leading.reason

    @property
    def since(self) -> float:
        """Wall clock, in seconds."""
        return self._leading.since

    @property
    def progress(self) -> Loading:
        """How far it is, while it loads."""
        return self._leading.progress

    @property
    def worker_pid(self) -> int | None:
        return self._leading.worker_pid

    @property
    def gauges(self) -> dict[str, int]:
        """The engine's counters as of the last step; empty without a worker."""
        return self._leading.gauges

    @property
    def num_steps(self) -> int:
        return self._leading.num_steps

    @property
    def _leading(self) -> Replica:
        """The replica that is furthest."""
        return min(self.replicas, key=lambda each: _FURTHEST_FIRST.index(each.state))

    @property
    def num_leases(self) -> int:
        """Requests that hold it loaded."""
        return self._num_leases

    @property
    def expires_in_s(self) -> float | None:
        """Seconds until it is unloaded if nobody uses it; None when that is not under way."""
        if self._keep_alive_timer is None:
            return None
        return max(0.0, self._keep_alive_timer.when() - asyncio.get_running_loop().time())

    # ---- for requests ----

    @contextlib.asynccontextmanager
    async def lease(self, on_progress: Callable[[Loading], None]) -> AsyncIterator[None]:
        """Hold the model loaded. Loads it first if need be, telling `on_progress` how far it is.
        Should its worker die, a new one is started; `wait_link` gives the one there is.

        Raises `ModelFailed`, `NoMemory` or `ModelLoading` when it does not come.
        """
        await self.wait_link(on_progress)
        self._num_leases += 1
        self._stop_keep_alive()
        try:
            yield
        finally:
            self._num_leases -= 1
            self._start_keep_alive()

    async def wait_link(
        self, on_progress: Callable[[Loading], None], *, patience_s: float = PATIENCE_S
    ) -> Link:
        """The link to a worker that is ready, loading the model if need be. Raises like `lease`,
        if the next try to load it is further off than `patience_s`."""
        told: Loading | None = None
        self._num_hopeful += 1
        try:
            while (link := self._ready_link()) is None:
                self._check_hope(patience_s)
                self._want()
                if self.state is ModelState.LOADING and self.progress is not told:
                    told = self.progress
                    on_progress(told)
                await self._wait_change()
        finally:
            self._num_hopeful -= 1
        return link

    def check_adapter(self, name: str | None) -> None:
        """Raise `NotFound` if a request names an adapter that the model does not have."""
        known = sorted(self.spec.load.adapters)
        if name is not None and name not in known:
            raise NotFound(
                f"model {self.name} has no adapter {name!r}" + suggestion(name, known),
                hint="its adapters: " + (", ".join(known) or "none; see `adapters` of the model"),
            )

    def _ready_link(self) -> Link | None:
        links = (replica.ready_link for replica in self.replicas)
        return next((link for link in links if link is not None), None)

    def _check_hope(self, patience_s: float) -> None:
        """Raise when waiting for the model is pointless: what the first to be tried again says."""
        problems = [replica.why_hopeless(patience_s) for replica in self.replicas]
        hopeless = [problem for problem in problems if problem is not None]
        if len(hopeless) == len(problems):
            raise min(hopeless, key=lambda each: each.retry_after_s or float("inf"))

    def _want(self) -> None:
        for replica in self.replicas:
            replica.want()

    # ---- for administrators ----

    async def load(self, on_progress: Callable[[Loading], None]) -> None:
        """Load now, whatever failed before. Raises like `lease()`."""
        for replica in self.replicas:
            replica.forget_failure()
        await self.wait_link(on_progress)
        self._start_keep_alive()

    async def unload(self) -> None:
        """Let running requests finish, then stop the workers. Returns when they are gone.

        Whoever waits for the model meanwhile is woken and wants it again, which loads it anew.
        """
        self._stop_keep_alive()
        links = [link for replica in self.replicas if (link := replica.link) is not None]
        for replica in self.replicas:
            replica.stop("on request")
        while any(replica.link in links for replica in self.replicas):
            await self._wait_change()

    async def wait_settled(self) -> None:
        """Until the first load has succeeded or failed, or was called off by `unload()`."""
        self._want()
        await self._wait_change()
        while self.state is ModelState.LOADING:
            await self._wait_change()

    def abandon(self) -> None:
        """Kill the workers now. For the end of the drain: their requests are cancelled already."""
        for replica in self.replicas:
            replica.kill()

    # ---- the task ----

    async def run(self) -> None:
        """Keep every replica going, for ever."""
        async with asyncio.TaskGroup() as tasks:
            for replica in self.replicas:
                tasks.create_task(replica.run())

    # ---- what replicas say (replica.Owner) ----

    @property
    def is_needed(self) -> bool:
        return self.spec.is_kept_warm or self._num_hopeful > 0 or self._num_leases > 0

    def note_step(self, gauges: Mapping[str, int]) -> None:
        self.peaks.note(gauges)

    def replica_changed(self, replica: Replica) -> None:
        if replica.state is ModelState.READY:
            self.info = replica.info
            self._start_keep_alive()
        self._on_change(self)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _wait_change(self) -> None:
        """Until the state or the load progress of a replica changes."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    # ---- keep-alive ----

    def _start_keep_alive(self) -> None:
        self._stop_keep_alive()
        if not self.spec.is_kept_warm and self._num_leases == 0:
            loop = asyncio.get_running_loop()
            self._keep_alive_timer = loop.call_later(self.spec.keep_alive_s, self._unload_idle)

    def _stop_keep_alive(self) -> None:
        if self._keep_alive_timer is not None:
            self._keep_alive_timer.cancel()
            self._keep_alive_timer = None

    def _unload_idle(self) -> None:
        self._keep_alive_timer = None
        if self.state is ModelState.READY and self._num_leases == 0:
            for replica in self.replicas:
                replica.stop(f"after {format_duration(self.spec.keep_alive_s)} without use")
