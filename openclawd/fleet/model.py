"""One model as its users see it: its state, who uses it, who waits for it, and its replicas.

Owns which replicas there are and whether they are wanted; what a worker does is `replica.py`'s, and
which of them computes a request `router.py`'s. Knows no client and no token; requests hold the
model through `lease()` and take turns at it through `turns`.

Invariants: the model is ready as soon as one replica is, and has the slots of those that are; who
waits for it hears of every change of a replica; it is unloaded for being idle only when no lease is
held. `spec` is that of the replicas which new requests go to, and `goal` what all are to become;
they differ only while the first worker with other settings is on its way.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import NoMemory, NotFound
from openclawctl.wire.fields import suggestion
from openclawctl.wire.units import format_duration
from openclawd.fleet.changes import Changes
from openclawd.fleet.history import WorkerHistory
from openclawd.fleet.interest import Interest
from openclawd.fleet.peaks import Peaks
from openclawd.fleet.replica import Replica
from openclawd.fleet.router import Demand, Option, choose
from openclawd.fleet.spec import ModelSpec, ModelState
from openclawd.fleet.turns import Turns
from openclawd.worker.messages import Loading

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from openclawd.fleet.link import Link
    from openclawd.fleet.placer import Placer
    from openclawd.fleet.residents import Residents
    from openclawd.worker.messages import Load

logger = logging.getLogger(__name__)

WAITING: Final = Loading("waiting for memory", 0.0)
"""What is told to those who wait until others make way, or until its files were looked at."""

PATIENCE_S: Final = 5.0
"""A request waits for a model in backoff when it is tried again within this time; else it is told
when to come back."""

_ANY: Final = Demand()

_FURTHEST_FIRST: Final = (
    ModelState.READY,
    ModelState.LOADING,
    ModelState.DRAINING,
    ModelState.BACKOFF,
    ModelState.FAILED,
    ModelState.UNLOADED,
)
"""Which replica's state is the model's."""

_FAILING: Final = (ModelState.BACKOFF, ModelState.FAILED)


class Model:
    """A model of the fleet. `run()` is its one task, owned by the fleet."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        placer: Placer,
        residents: Residents,
        on_change: Callable[[Model], None],
        max_waiting: int,
        max_skips: int,
    ) -> None:
        self.spec = spec
        self.goal = spec
        self._placer = placer
        self._residents = residents
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
        self.history = WorkerHistory()
        self.note = ""
        """What an administrator is to know beside the state."""
        self.replicas: list[Replica] = []
        """Only while the last one with old settings makes room is there none."""
        self._last: Replica
        self._tasks: asyncio.TaskGroup | None = None
        self._is_over = asyncio.Event()
        self._num_leases = 0
        self._keep_alive_timer: asyncio.TimerHandle | None = None
        self._changes = Changes()
        self._interest = Interest()
        self._keep_alive_s = spec.keep_alive_s
        self.is_shrunk = False
        """Has `spec` less than `goal`, because memory is short?"""
        self.ready_at = 0.0
        self.used_at = 0.0
        for _ in range(spec.scale.low):
            self._last = self.add_replica()

    # ---- questions ----

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def state(self) -> ModelState:
        return self._leading.state

    @property
    def reason(self) -> str:
        """Why it is in its state; of one that is ready, what is wrong all the same."""
        if reason := self._leading.reason or self.note:
            return reason
        failing = (each for each in self.replicas if each.state in _FAILING)
        return next((f"replica {each.index + 1}: {each.reason}" for each in failing), "")

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
        """The engines' counters as of their last steps, added up; empty without a worker."""
        total: Counter[str] = Counter()
        for replica in self.replicas:
            total.update(replica.gauges)
        return dict(total)

    @property
    def num_steps(self) -> int:
        return sum(replica.num_steps for replica in self.replicas)

    @property
    def stalled_s(self) -> float:
        """How long one of its workers has owed a sign of progress; 0 while all get on or are
        idle."""
        return max((replica.stalled_s for replica in self.replicas), default=0.0)

    @property
    def is_beyond_help(self) -> bool:
        """Was a worker of it killed, and is it still there?"""
        return any(replica.is_beyond_help for replica in self.replicas)

    @property
    def step_timeout_s(self) -> float:
        """How long a worker may owe a step."""
        return self.spec.step_timeout_s

    @property
    def _leading(self) -> Replica:
        """The replica that is furthest; the last there was, while there is none."""
        replicas = self.replicas or [self._last]
        return min(replicas, key=lambda each: _FURTHEST_FIRST.index(each.state))

    @property
    def num_leases(self) -> int:
        """Requests that hold it loaded."""
        return self._num_leases

    @property
    def num_waiting(self) -> int:
        """Requests that wait for it to be loaded."""
        return self._interest.num_waiting

    @property
    def wanted_since(self) -> float | None:
        """Since when it is wanted and not there; monotonic clock. None, too, until it may be tried
        again after a load that failed."""
        is_there = self.state is ModelState.READY
        return None if is_there or self.is_backing_off else self._interest.since

    @property
    def is_wanted_politely(self) -> bool:
        """Is nobody to make way for it?"""
        return self._interest.is_polite

    @property
    def is_backing_off(self) -> bool:
        """Did a load fail, and is the next one not due?"""
        is_coming = any(replica.holds_room for replica in self.replicas)
        return self.state is ModelState.BACKOFF and not is_coming

    @property
    def idle_s(self) -> float | None:
        """Seconds since it was last used, or since it was loaded; None while it is in use."""
        if self.state is not ModelState.READY or self._num_leases:
            return None
        return max(0.0, asyncio.get_running_loop().time() - self.used_at)

    @property
    def tokens_per_s(self) -> float:
        """What its workers make now."""
        now = asyncio.get_running_loop().time()
        links = (replica.link for replica in self.replicas)
        return sum(link.tempo.per_second(now) for link in links if link is not None)

    @property
    def expires_in_s(self) -> float | None:
        """Seconds until it is unloaded if nobody uses it; None when that is not under way."""
        if self._keep_alive_timer is None:
            return None
        return max(0.0, self._keep_alive_timer.when() - asyncio.get_running_loop().time())

    # ---- for requests ----

    @contextlib.asynccontextmanager
    async def lease(
        self, on_progress: Callable[[Loading], None], *, keep_alive_s: float | None = None
    ) -> AsyncIterator[None]:
        """Hold the model loaded. Loads it first if need be, telling `on_progress` how far it is.
        Should its worker die, a new one is started; `wait_link` gives the one there is. After it
        the model stays for `keep_alive_s`, if that is given.

        Raises `ModelFailed`, `NoMemory` or `ModelLoading` when it does not come.
        """
        await self.wait_link(on_progress)
        self._num_leases += 1
        self._stop_keep_alive()
        try:
            yield
        finally:
            self._num_leases -= 1
            self.used_at = asyncio.get_running_loop().time()
            self._keep_alive_s = self.spec.keep_alive_s if keep_alive_s is None else keep_alive_s
            self._start_keep_alive()
            self.wake()
            if self._num_leases == 0:
                self._residents.changed(self)

    async def wait_link(
        self,
        on_progress: Callable[[Loading], None],
        *,
        patience_s: float = PATIENCE_S,
        demand: Demand = _ANY,
    ) -> Link:
        """The link to the worker that is best for a request, loading the model if need be. Raises
        like `lease`, if the next try to load it is further off than `patience_s`."""
        told: Loading | None = None
        self._interest.begin_to_wait(asyncio.get_running_loop().time())
        try:
            while (link := self._best_link(demand)) is None:
                self._check_hope(patience_s)
                self._residents.want(self)
                if (progress := self._news()) is not None and progress is not told:
                    told = progress
                    on_progress(told)
                await self.wait_change()
        finally:
            self._interest.end_to_wait()
        return link

    def check_adapter(self, name: str | None) -> None:
        """Raise `NotFound` if a request names an adapter that the model does not have."""
        known = sorted(self.spec.load.adapters)
        if name is not None and name not in known:
            raise NotFound(
                f"model {self.name} has no adapter {name!r}" + suggestion(name, known),
                hint="its adapters: " + (", ".join(known) or "none; see `adapters` of the model"),
            )

    def better_link(self, own: Link, demand: Demand) -> Link:
        """The link to the worker that is best for a request which one has prepared: that one, or
        another with the same settings, to which the counts that were made apply as well."""
        holder = next((each for each in self.replicas if each.link is own), None)
        if holder is None:
            return own
        alike = [each for each in self.replicas if each.spec.is_same_worker(holder.spec)]
        return _best_of(alike, demand, own) or own

    def _best_link(self, demand: Demand) -> Link | None:
        """None while no worker is ready. Those with other settings are on their way out."""
        current = [each for each in self.replicas if each.spec.is_same_worker(self.spec)]
        link = _best_of(current, demand) or _best_of(self.replicas, demand)
        must_wait = link is not None and demand.has_begun and self._is_full(link, demand)
        return None if must_wait and any(each.will_be_ready for each in current) else link

    def _is_full(self, link: Link, demand: Demand) -> bool:
        owner = next(each for each in self.replicas if each.link is link)
        return link.num_sequences + demand.num_sequences > owner.num_slots

    def _check_hope(self, patience_s: float) -> None:
        """Raise when waiting for the model is pointless: what the first to be tried again says."""
        current = (each for each in self.replicas if not each.is_retired)
        problems = [replica.why_hopeless(patience_s) for replica in current]
        hopeless = [problem for problem in problems if problem is not None]
        if problems and len(hopeless) == len(problems):
            raise min(hopeless, key=lambda each: each.retry_after_s or float("inf"))

    def _news(self) -> Loading | None:
        """What to tell those who wait for it."""
        if self.state is ModelState.LOADING:
            return self.progress
        return WAITING if self.state in (ModelState.UNLOADED, ModelState.DRAINING) else None

    def want(self) -> None:
        """Have it loaded by and by, if there is room. Nobody has to make way for it."""
        self._interest.wish(asyncio.get_running_loop().time())
        self._ask_for_room()

    def _ask_for_room(self) -> None:
        """For what is wished and no request waits for."""
        try:
            self._residents.want(self)
        except NoMemory as problem:
            self._interest.forget_wish()
            logger.error("model %s is not loaded: %s", self.name, problem.message)
            self._leading.tell(problem.message)

    def has_room_for_one_more(self) -> bool:
        """Could another worker be had beside those that there are, with the settings of `goal`?"""
        return self._residents.has_room_for_one_more(self)

    # ---- for the residents ----

    def come(self) -> None:
        """There is room: load it."""
        for replica in self.replicas:
            replica.want()

    def make_way(self) -> None:
        """Take no further requests, and leave when those that it has have ended."""
        self._stop_keep_alive()
        for replica in self.replicas:
            replica.stop("to make room for another model")

    def resize(self, load: Load) -> None:
        """Be loaded with these settings, while memory is short. It must not be loaded now."""
        self.is_shrunk = load != self.goal.load
        self.spec = replace(self.goal, load=load) if self.is_shrunk else self.goal
        for replica in self.replicas:
            replica.resize(self.spec)

    def wake(self) -> None:
        """Have those who wait look again."""
        self._changes.tell()
        if self._interest.has_wish and self.state is ModelState.UNLOADED:
            asyncio.get_running_loop().call_soon(self._wish_again)

    def _wish_again(self) -> None:
        if self._interest.has_wish:
            self._ask_for_room()

    # ---- for administrators ----

    async def load(self, on_progress: Callable[[Loading], None]) -> None:
        """Load now, whatever failed before. Raises like `lease()`."""
        for replica in self.replicas:
            replica.forget_failure()
        await self.wait_link(on_progress)
        self._keep_alive_s = self.spec.keep_alive_s
        self._start_keep_alive()

    async def unload(self) -> None:
        """Let running requests finish, then stop the workers. Returns when they are gone.

        Whoever waits for the model meanwhile is woken and wants it again, which loads it anew.
        """
        self._stop_keep_alive()
        self._interest.forget_wish()
        links = [link for replica in self.replicas if (link := replica.link) is not None]
        for replica in self.replicas:
            replica.stop("on request")
        while any(replica.link in links for replica in self.replicas):
            await self.wait_change()

    async def wait_settled(self) -> None:
        """Load it if there is room, for which nobody has to make way. Until that has succeeded or
        failed, or was called off by `unload()`."""
        self.want()
        while self._interest.has_wish and not self.is_backing_off:
            await self.wait_change()

    def abandon(self) -> None:
        """Kill the workers now. For the end of the drain: their requests are cancelled already."""
        for replica in self.replicas:
            replica.kill()

    # ---- the replicas ----

    async def run(self) -> None:
        """Keep every replica going, until `leave` lets it end."""
        async with asyncio.TaskGroup() as self._tasks:
            for replica in self.replicas:
                self._tasks.create_task(self._keep(replica))
            await self._is_over.wait()

    def add_replica(self) -> Replica:
        """One more, with the settings of `goal`. It is loaded once it is wanted."""
        taken = {each.index for each in self.replicas if each.spec.is_same_worker(self.goal)}
        index = next(number for number in itertools.count() if number not in taken)
        replica = Replica(self.goal, index, placer=self._placer, owner=self)
        self.replicas.append(replica)
        if self._tasks is not None:
            self._tasks.create_task(self._keep(replica))
        self.wake()
        return replica

    async def _keep(self, replica: Replica) -> None:
        await replica.run()
        self.replicas.remove(replica)
        self._last = replica
        self.replica_changed(replica)

    def adopt(self, spec: ModelSpec) -> None:
        """These are the settings from now on, which its workers have or need not have."""
        self.spec = spec
        self.is_shrunk = False
        self._fit_turns()
        self._keep_alive_s = spec.keep_alive_s
        self._start_keep_alive()

    async def leave(self) -> None:
        """The model is no more. Whoever has it or waits for it is served; returns after that."""
        while self._num_leases or self._interest.num_waiting:
            await self.wait_change()
        await self.unload()
        for replica in self.replicas:
            replica.retire("because the configuration has it no more")
        self._is_over.set()

    # ---- what replicas say (replica.Owner) ----

    @property
    def is_needed(self) -> bool:
        is_used = self._interest.since is not None or self._num_leases > 0
        return self.spec.is_kept_warm or is_used or self.state is ModelState.READY

    def may_shrink(self) -> bool:
        return self._residents.lower(self)

    def try_again(self) -> None:
        self.want()

    def note_step(self, gauges: Mapping[str, int]) -> None:
        self.peaks.note(gauges)

    def replica_changed(self, replica: Replica) -> None:
        if replica.state is ModelState.READY:
            if replica.spec.is_same_worker(self.goal):
                self.spec = self.goal
            if replica.spec.is_same_worker(self.spec):
                self.info = replica.info
            self._interest.forget_wish()
            self.ready_at = self.used_at = asyncio.get_running_loop().time()
            self._start_keep_alive()
        elif self.state is ModelState.FAILED:
            self._interest.forget_wish()
        self._fit_turns()
        self._on_change(self)
        self.wake()
        self._residents.changed(self)

    def _fit_turns(self) -> None:
        """As many slots as its workers have; those of one while none is there."""
        ready = [each for each in self.replicas if each.state is ModelState.READY]
        num_slots = sum(each.num_slots for each in ready)
        self.turns.resize(num_slots or self.spec.load.parallel)

    async def wait_change(self) -> None:
        """Until the state or the load progress of a replica changes, or somebody is done with the
        model."""
        await self._changes.wait()

    # ---- keep-alive ----

    def _start_keep_alive(self) -> None:
        self._stop_keep_alive()
        if math.isfinite(self._keep_alive_s) and self._num_leases == 0:
            loop = asyncio.get_running_loop()
            self._keep_alive_timer = loop.call_later(self._keep_alive_s, self._unload_idle)

    def _stop_keep_alive(self) -> None:
        if self._keep_alive_timer is not None:
            self._keep_alive_timer.cancel()
            self._keep_alive_timer = None

    def _unload_idle(self) -> None:
        self._keep_alive_timer = None
        if self.state is ModelState.READY and self._num_leases == 0:
            for replica in self.replicas:
                replica.stop(f"after {format_duration(self._keep_alive_s)} without use")


def _best_of(replicas: Sequence[Replica], demand: Demand, own: Link | None = None) -> Link | None:
    """The link to the one of these that is to compute a request; None if none of them is ready."""
    links = [(each, link) for each in replicas if (link := each.ready_link) is not None]
    if len(links) < 2:
        return links[0][1] if links else None
    options = [
        Option(
            slots=replica.num_slots,
            busy=link.num_sequences,
            known_tokens=link.beginnings.longest(demand.domain, demand.prefixes),
            has_it=link is own,
            num_calls=link.num_calls,
        )
        for replica, link in links
    ]
    return links[choose(options, num_sequences=demand.num_sequences)][1]
