"""One model: its state, its worker, and who is using it.

Owns the state machine `unloaded → loading → ready → draining → unloaded`, `backoff`, `failed`, and
is the only place where a worker is started, restarted or stopped (`Model.run`). Knows no client and
no token; requests hold the model through `lease()` and take turns at it through `turns`.

Invariants: one worker at a time; a worker is stopped only when no lease is held or the daemon ends;
everyone who waits for the model hears of every change of its state.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, assert_never

from openclawctl.wire.errors import (
    Internal,
    ModelFailed,
    ModelLoading,
    NoMemory,
    NotFound,
    Problem,
    WorkerDied,
)
from openclawctl.wire.fields import suggestion
from openclawd.fleet.ending import Cause, Ending, ending_of
from openclawd.fleet.history import WorkerHistory
from openclawd.fleet.link import Link
from openclawd.fleet.peaks import Peaks
from openclawd.fleet.process import WorkerProcess, spawn
from openclawd.fleet.restart import RestartPolicy
from openclawd.fleet.turns import Turns
from openclawd.observe import message_ids
from openclawd.observe.logs import fields
from openclawd.worker.messages import Load, Loaded, LoadFailed, Loading

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from openclawd.fleet.placement import CoreAllocator

logger = logging.getLogger(__name__)

PATIENCE_S: Final = 5.0
"""A request waits for a model in backoff when it is tried again within this time; else it is told
when to come back."""


Files = tuple[tuple[int, int, int] | None, ...]
"""What tells one state of a model's files from another."""


class ModelState(enum.Enum):
    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    BACKOFF = "backoff"
    FAILED = "failed"


_MESSAGE_IDS: Final = {
    ModelState.READY: message_ids.MODEL_READY,
    ModelState.FAILED: message_ids.MODEL_FAILED,
    ModelState.BACKOFF: message_ids.MODEL_BACKOFF,
}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a model is made of. `load.path` may name a file that is not there (yet).

    `keep_alive_s` may be infinite; `num_cores` None leaves the worker every core of the daemon.
    """

    load: Load
    backend: str = "llama"
    preload: bool = False
    required: bool = False
    keep_alive_s: float = math.inf
    devices: tuple[str, ...] = ()
    num_cores: int | None = None

    @property
    def name(self) -> str:
        return self.load.name


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
        self.state = ModelState.UNLOADED
        self.reason = ""
        self.since = time.time()
        self.info: dict[str, Any] = {}
        self.progress = Loading("start", 0.0)
        self.turns = Turns(
            model=spec.name,
            max_running=spec.load.parallel,
            max_waiting=max_waiting,
            max_skips=max_skips,
        )
        self.one_suspect_at_a_time = asyncio.Lock()
        self.loaded_files: Files = ()
        self.peaks = Peaks()
        self.history = WorkerHistory()
        self._worker: WorkerProcess | None = None
        self._link: Link | None = None
        self._policy = RestartPolicy()
        self._problem: Problem | None = None
        self._files_when_failed: tuple[tuple[int, int, int] | None, ...] = ()
        self._retry_at = 0.0
        self._wanted = asyncio.Event()
        self._unwanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._num_leases = 0
        self._keep_alive_timer: asyncio.TimerHandle | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self._num_hopeful = 0

    # ---- for requests ----

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def worker_pid(self) -> int | None:
        return self._worker.pid if self._worker else None

    @property
    def expires_in_s(self) -> float | None:
        """Seconds until it is unloaded if nobody uses it; None when that is not under way."""
        if self._keep_alive_timer is None:
            return None
        return max(0.0, self._keep_alive_timer.when() - asyncio.get_running_loop().time())

    @property
    def gauges(self) -> dict[str, int]:
        """The engine's counters as of the last step; empty without a worker."""
        return self._link.gauges if self._link else {}

    @property
    def num_steps(self) -> int:
        return self._link.num_steps if self._link else 0

    def stalled_s(self) -> float:
        """How long its worker has said nothing although it owes an answer; 0 if all is well."""
        return self._link.silent_s(now=time.monotonic()) if self._link else 0.0

    @contextlib.asynccontextmanager
    async def lease(self, on_progress: Callable[[Loading], None]) -> AsyncIterator[None]:
        """Hold the model loaded. Loads it first if need be, telling `on_progress` how far it is.
        Should its worker die, a new one is started; `wait_link` gives the one there is.

        Raises `ModelFailed`, `NoMemory` or `ModelLoading` when it does not come.
        """
        await self.wait_link(on_progress)
        self._num_leases += 1
        self._idle.clear()
        self._stop_keep_alive()
        try:
            yield
        finally:
            self._num_leases -= 1
            if self._num_leases == 0:
                self._idle.set()
                self._start_keep_alive()

    def check_adapter(self, name: str | None) -> None:
        """Raise `NotFound` if a request names an adapter that the model does not have."""
        known = sorted(self.spec.load.adapters)
        if name is not None and name not in known:
            raise NotFound(
                f"model {self.name} has no adapter {name!r}" + suggestion(name, known),
                hint="its adapters: " + (", ".join(known) or "none; see `adapters` of the model"),
            )

    # ---- for administrators ----

    async def load(self, on_progress: Callable[[Loading], None]) -> None:
        """Load now, whatever failed before. Raises like `lease()`."""
        if self.state in (ModelState.FAILED, ModelState.BACKOFF):
            self._forget_failure()
        await self.wait_link(on_progress)
        self._start_keep_alive()

    async def unload(self) -> None:
        """Let running requests finish, then stop the worker. Returns when it is gone.

        Whoever waits for the model meanwhile is woken and wants it again, which loads it anew.
        """
        self._wanted.clear()
        self._stop_keep_alive()
        if self.state in (ModelState.FAILED, ModelState.BACKOFF):
            self._forget_failure()
            self._set_state(ModelState.UNLOADED, "unloaded on request")
        elif self.state is ModelState.UNLOADED:
            self._notify()
        else:
            await self._stop_worker()

    async def _stop_worker(self) -> None:
        """Stop the worker that is there or is being started."""
        link = self._link
        if self.state is ModelState.READY:
            self._set_state(ModelState.DRAINING, "unloading on request")
        self._unwanted.set()
        while self._link is link:
            await self._wait_change()

    async def wait_settled(self) -> None:
        """Until the first load has succeeded or failed, or was called off by `unload()`."""
        self._wanted.set()
        await self._wait_change()
        while self.state is ModelState.LOADING:
            await self._wait_change()

    def abandon(self) -> None:
        """Kill the worker now. For the end of the drain: its requests are cancelled already."""
        if self._worker is not None:
            self._worker.kill()

    # ---- the task ----

    async def run(self) -> None:
        """Start the worker when the model is wanted, and again when it died, for ever."""
        while True:
            while not self._wanted.is_set():  # it may be cleared between being set and our turn
                await self._wanted.wait()
            self._unwanted.clear()
            ending = await self._run_worker()
            self.history.ended(ending.cause)
            await self._after(ending)

    async def _run_worker(self) -> Ending:
        """One worker from start to exit."""
        self.progress = Loading("start", 0.0)
        self._problem = None
        self.loaded_files = self._file_signatures()
        self._set_state(ModelState.LOADING, "")
        self._link = link = Link(
            on_load_message=self._take_load_message,
            on_lost=self._on_lost,
            on_step=self.peaks.note,
        )
        with self._cores.lend(self.spec.num_cores) as cores:
            try:
                worker = await spawn(self.name, link, devices=self.spec.devices, cores=cores)
            except OSError as error:
                self._link = None
                story = f"no worker process could be started: {error}"
                return Ending(Cause.LOAD_FAILED_FOR_NOW, story)
            return await self._watch_worker(worker, link)

    async def _watch_worker(self, worker: WorkerProcess, link: Link) -> Ending:
        started_at = time.monotonic()
        self._worker = worker
        self.history.started(now=started_at)
        logger.info("model %s: worker %d loads %s", self.name, worker.pid, self.spec.load.path)
        link.send(self.spec.load)
        try:
            status = await self._wait_exit(worker)
        finally:
            self._worker = None
            self._link = None
            self._lose(link, worker)
            if link.has_delivered:
                self._policy.got_something_done()
        logger.info(
            "model %s: worker %d ended after %.1f s with status %d",
            self.name,
            worker.pid,
            time.monotonic() - started_at,
            status,
        )
        if self._unwanted.is_set():
            return Ending(Cause.STOPPED, "unloaded on request")
        return ending_of(
            status,
            said=self._problem.message if self._problem else None,
            last_words=worker.last_words[-1] if worker.last_words else None,
            was_loading=self.state is ModelState.LOADING,
        )

    async def _wait_exit(self, worker: WorkerProcess) -> int:
        async with asyncio.TaskGroup() as tasks:
            stopper = tasks.create_task(self._stop_when_unwanted(worker))
            status = await worker.wait_exit()
            stopper.cancel()
        return status

    async def _stop_when_unwanted(self, worker: WorkerProcess) -> None:
        await self._unwanted.wait()
        await self._idle.wait()
        await worker.stop()

    async def _after(self, ending: Ending) -> None:
        """Decide what follows a worker's end, and wait if that is a backoff."""
        story = ending.story
        match ending.cause:
            case Cause.STOPPED:
                self._set_state(ModelState.UNLOADED, story)
            case Cause.LOAD_FAILED:
                self._fail(story)
            case Cause.LOAD_FAILED_FOR_NOW:
                await self._back_off(self._policy.delay_after_failed_load_s(), story)
            case Cause.CRASHED:
                delay = self._policy.delay_after_crash_s(time.monotonic())
                if delay is None:
                    crashes = self._policy.num_recent_crashes
                    self._fail(f"{story} ({crashes} times in a row; given up)")
                else:
                    await self._back_off(delay, story)
            case _:
                assert_never(ending.cause)

    def _fail(self, story: str) -> None:
        hint = self._problem.hint if self._problem else "see the log of the daemon"
        self._problem = ModelFailed(
            f"model {self.name} cannot be used: {story}",
            hint=f"{hint}; then `openclawctl load {self.name}`",
        )
        self._files_when_failed = self._file_signatures()
        self._wanted.clear()
        self._set_state(ModelState.FAILED, story)

    async def _back_off(self, delay_s: float, story: str) -> None:
        self._retry_at = time.monotonic() + delay_s
        when = f"in {delay_s:.1f} s" if delay_s else "now"
        self._set_state(ModelState.BACKOFF, f"{story}; next try {when}")
        while (left := self._retry_at - time.monotonic()) > 0 and self._wanted.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wait_change()
        is_needed = self._is_kept_warm() or self._num_hopeful > 0 or self._num_leases > 0
        if not is_needed and self.state is ModelState.BACKOFF:
            self._wanted.clear()
            self._set_state(ModelState.UNLOADED, story)

    # ---- what the worker says while it loads ----

    def _take_load_message(self, message: Loading | Loaded | LoadFailed) -> None:
        match message:
            case Loading():
                self.progress = message
                self._notify()
            case Loaded(info=info):
                self.info = info
                self._policy.loaded()
                self.history.loaded(now=time.monotonic())
                if not self._unwanted.is_set():  # else it has been told to stop
                    self._set_state(ModelState.READY, "")
                    self._start_keep_alive()
            case LoadFailed():
                problem = ModelFailed if message.permanent else NoMemory
                self._problem = problem(message.message, hint=message.hint)
            case _:
                assert_never(message)

    def _on_lost(self) -> None:
        """The pipe closed. The exit status follows; until then nothing new is started."""
        worker = self._worker
        if self._link is not None and worker is not None:
            self._lose(self._link, worker)
            worker.kill()  # a worker without its pipe is of no use, should it live on

    def _lose(self, link: Link, worker: WorkerProcess) -> None:
        if link.num_calls:
            logger.warning(
                "model %s: worker %d is gone; it had %d requests",
                self.name,
                worker.pid,
                link.num_calls,
            )
        link.close(WorkerDied(f"the worker of model {self.name} (pid {worker.pid}) died"))

    # ---- waiting and telling ----

    async def wait_link(
        self, on_progress: Callable[[Loading], None], *, patience_s: float = PATIENCE_S
    ) -> Link:
        """The link to the worker that is ready, loading the model if need be. Raises like `lease`,
        if the next try to load it is further off than `patience_s`."""
        told: Loading | None = None
        self._num_hopeful += 1
        try:
            while (link := self._ready_link()) is None:
                self._check_hope(patience_s)
                self._wanted.set()
                if self.state is ModelState.LOADING and self.progress is not told:
                    told = self.progress
                    on_progress(told)
                await self._wait_change()
        finally:
            self._num_hopeful -= 1
        return link

    def _ready_link(self) -> Link | None:
        """None, too, in the moments between the loss of the link and the worker's exit."""
        is_ready = self.state is ModelState.READY and self._link and not self._link.is_closed
        return self._link if is_ready else None

    def _check_hope(self, patience_s: float) -> None:
        """Raise when waiting for the model is pointless."""
        if self.state is ModelState.FAILED:
            if self._file_signatures() == self._files_when_failed:
                raise self._copy_of(self._problem)
            self._forget_failure()
        elif self.state is ModelState.BACKOFF:
            left = self._retry_at - time.monotonic()
            if left > patience_s:
                problem = NoMemory if isinstance(self._problem, NoMemory) else ModelLoading
                raise problem(
                    f"model {self.name} is not loaded: {self.reason}",
                    hint=f"`openclawctl load {self.name}` tries at once",
                    retry_after_s=round(left, 1),
                )

    def _copy_of(self, problem: Problem | None) -> Problem:
        """A fresh exception per waiter: one instance raised twice would grow its traceback."""
        if problem is None:
            return Internal(f"model {self.name} failed for an unknown reason")
        return type(problem)(problem.message, hint=problem.hint)

    def _forget_failure(self) -> None:
        self._policy.forget()
        self._retry_at = 0.0
        if self.state is ModelState.FAILED:
            self._set_state(ModelState.UNLOADED, "")
        self._notify()

    def _set_state(self, state: ModelState, reason: str) -> None:
        self.state = state
        self.reason = reason
        self.since = time.time()
        level = logging.ERROR if state in (ModelState.FAILED, ModelState.BACKOFF) else logging.INFO
        logger.log(
            level,
            "model %s: %s%s",
            self.name,
            state.value,
            reason and f": {reason}",
            extra=fields(message_id=_MESSAGE_IDS.get(state), model=self.name),
        )
        self._notify()

    def _notify(self) -> None:
        self._on_change(self)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _wait_change(self) -> None:
        """Until the state or the load progress changes."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    # ---- keep-alive ----

    def _is_kept_warm(self) -> bool:
        return math.isinf(self.spec.keep_alive_s)

    def _start_keep_alive(self) -> None:
        self._stop_keep_alive()
        if not self._is_kept_warm() and self._num_leases == 0:
            loop = asyncio.get_running_loop()
            self._keep_alive_timer = loop.call_later(self.spec.keep_alive_s, self._unload_idle)

    def _stop_keep_alive(self) -> None:
        if self._keep_alive_timer is not None:
            self._keep_alive_timer.cancel()
            self._keep_alive_timer = None

    def _unload_idle(self) -> None:
        if self.state is ModelState.READY and self._num_leases == 0:
            self._wanted.clear()
            self._set_state(ModelState.DRAINING, f"idle for {self.spec.keep_alive_s:.0f} s")
            self._unwanted.set()

    def _file_signatures(self) -> Files:
        load = self.spec.load
        adapters = [adapter["path"] for adapter in load.adapters.values()]
        return tuple(map(_signature, [load.path, load.draft_path, *adapters]))


def _signature(path: str) -> tuple[int, int, int] | None:
    """None while the file is not there."""
    with contextlib.suppress(OSError):
        status = os.stat(path)
        return status.st_ino, status.st_size, status.st_mtime_ns
    return None
