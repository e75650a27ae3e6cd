"""One replica of a model: the worker it has, and when that is started, restarted and stopped.

Owns the state machine `unloaded → loading → ready → draining → unloaded`, `backoff`, `failed`, and
is the only place where a worker is started, restarted or stopped (`Replica.run`). Knows no request;
whether it is wanted is its model's to say.

Invariants: one worker at a time; a worker is stopped only when it has no call left or the daemon
ends; its owner hears of every change of its state.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, Final, Protocol, assert_never

from openclawctl.wire.errors import (
    Internal,
    ModelFailed,
    ModelLoading,
    NoMemory,
    Problem,
    WorkerDied,
)
from openclawd.fleet.ending import Cause, Ending, ending_of
from openclawd.fleet.link import Link
from openclawd.fleet.placement import NoPlace
from openclawd.fleet.placer import CalledOff, Wanted
from openclawd.fleet.process import WorkerProcess, spawn
from openclawd.fleet.progress import kill_when_stalled
from openclawd.fleet.restart import RestartPolicy
from openclawd.fleet.spec import Files, ModelSpec, ModelState
from openclawd.observe import message_ids
from openclawd.observe.logs import fields, log_bug
from openclawd.worker.messages import Loaded, LoadFailed, Loading

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openclawd.fleet.history import WorkerHistory
    from openclawd.fleet.placer import Place, Placer

logger = logging.getLogger(__name__)


_MESSAGE_IDS: Final = {
    ModelState.READY: message_ids.MODEL_READY,
    ModelState.FAILED: message_ids.MODEL_FAILED,
    ModelState.BACKOFF: message_ids.MODEL_BACKOFF,
}


class Owner(Protocol):
    """Whose replica it is: `Model`."""

    history: WorkerHistory

    def replica_changed(self, replica: Replica) -> None:
        """Its state or its load progress is another one."""

    def note_step(self, gauges: Mapping[str, int]) -> None:
        """Its engine has made a step."""

    @property
    def is_needed(self) -> bool:
        """Is anybody waiting for the model, or is it to stay loaded?"""

    def may_shrink(self) -> bool:
        """There was no memory for its worker. Is it to be tried with less, now?"""

    def try_again(self) -> None:
        """It may be loaded again, when there is room for it."""

    @property
    def step_timeout_s(self) -> float:
        """How long a worker may owe a step."""


class Replica:
    """`run()` is its one task, owned by its model. `index` counts from 0 among those of the same
    `spec`, which is that of its workers for good: other settings are another replica's."""

    def __init__(self, spec: ModelSpec, index: int, *, placer: Placer, owner: Owner) -> None:
        self.spec = spec
        self.index = index
        self.title = f"model {spec.name}"
        """What it is called in the log."""
        if spec.scale.high > 1:
            self.title += f", replica {index + 1}"
        self._placer = placer
        self.place: Place | None = None
        """What of the machine its worker has, or had."""
        self._owner = owner
        self.state = ModelState.UNLOADED
        self.reason = ""
        self.since = time.time()
        self.info: dict[str, Any] = {}
        self.progress = Loading("start", 0.0)
        self._worker: WorkerProcess | None = None
        self._link: Link | None = None
        self._policy = RestartPolicy()
        self._problem: Problem | None = None
        self._files_when_failed: Files = ()
        self._retry_at = 0.0
        self._started_at = 0.0
        self._wanted = asyncio.Event()
        self._unwanted = asyncio.Event()
        self._stop_reason = ""
        self.is_retired = False
        """Is it to end for good?"""
        self._changed = asyncio.Event()

    # ---- questions ----

    @property
    def worker_pid(self) -> int | None:
        return self._worker.pid if self._worker else None

    @property
    def gauges(self) -> dict[str, int]:
        """The engine's counters as of the last step; empty without a worker."""
        return self._link.gauges if self._link else {}

    @property
    def num_slots(self) -> int:
        """How many sequences its worker has at once: of an encoder, which keeps nothing between
        steps, more than was configured."""
        number, configured = self.info.get("parallel"), self.spec.load.parallel
        return max(number, configured) if isinstance(number, int) else configured

    @property
    def num_steps(self) -> int:
        return self._link.num_steps if self._link else 0

    @property
    def stalled_s(self) -> float:
        """How long its worker has owed a sign of progress; 0 while it gets on or is idle."""
        return self._link.stalled_s(time.monotonic()) if self._link else 0.0

    @property
    def is_beyond_help(self) -> bool:
        """Was its worker killed, and is it still there?"""
        return self._worker is not None and self._worker.is_beyond_help

    @property
    def link(self) -> Link | None:
        """That of the worker which is there or on its way."""
        return self._link

    @property
    def is_wanted(self) -> bool:
        """Has it a worker, or is it to get one?"""
        return self._wanted.is_set()

    @property
    def is_settled(self) -> bool:
        """Has what was wanted of it come, or failed?"""
        is_over = self.state in (ModelState.READY, ModelState.BACKOFF, ModelState.FAILED)
        return is_over or not self.is_wanted

    @property
    def will_be_ready(self) -> bool:
        """Will there be a worker soon, as far as is known?"""
        is_on_its_way = self.state in (ModelState.LOADING, ModelState.BACKOFF, ModelState.READY)
        return is_on_its_way and self.ready_link is None and not self.is_retired

    @property
    def has_old_files(self) -> bool:
        """Have the model's files changed since its worker was started?"""
        return self._link is not None and self._link.files != self.spec.files()

    @property
    def ready_link(self) -> Link | None:
        """None, too, in the moments between the loss of the link and the worker's exit."""
        is_ready = self.state is ModelState.READY and self._link and not self._link.is_closed
        return self._link if is_ready else None

    def why_hopeless(self, patience_s: float) -> Problem | None:
        """Why waiting for it is pointless, if it is: it will not be tried within `patience_s`. A
        new exception each time: one instance raised twice would grow its traceback."""
        if self.state is ModelState.FAILED and self.spec.files() == self._files_when_failed:
            if self._problem is None:
                return Internal(f"model {self.spec.name} failed for an unknown reason")
            return type(self._problem)(self._problem.message, hint=self._problem.hint)
        left = self._retry_at - time.monotonic()
        if self.state is ModelState.BACKOFF and left > patience_s:
            problem = NoMemory if isinstance(self._problem, NoMemory) else ModelLoading
            return problem(
                f"model {self.spec.name} is not loaded: {self.reason}",
                hint=f"`openclawctl load {self.spec.name}` tries at once",
                retry_after_s=round(left, 1),
            )
        return None

    @property
    def holds_room(self) -> bool:
        """Is its worker there, or about to be, and not about to go?"""
        return self._wanted.is_set() and not self.is_retired

    # ---- commands ----

    def resize(self, spec: ModelSpec) -> None:
        """Other settings for the next worker; there must be none now."""
        assert self._link is None, "a worker keeps its settings"
        self.spec = spec

    def want(self) -> None:
        """Have it loaded, unless that has failed for good and its files are what they were."""
        if self.is_retired:
            return
        if self.state is ModelState.FAILED:
            if self.spec.files() == self._files_when_failed:
                return
            self.forget_failure()
        self._wanted.set()

    def forget_failure(self) -> None:
        """Somebody said `load`, or the file changed: the next try is now, and as the first.
        Nothing happens if it has not failed."""
        if self.state not in (ModelState.FAILED, ModelState.BACKOFF):
            return
        self._policy.forget()
        self._retry_at = 0.0
        if self.state is ModelState.FAILED:
            self._set_state(ModelState.UNLOADED, "")
        else:
            self._notify()

    def stop(self, why: str) -> None:
        """Load it no more, and stop its worker once that has answered what it was given. `why`
        follows "unloading" and "unloaded" in what is told of it."""
        self._wanted.clear()
        self._stop_reason = f"unloaded {why}"
        if self.state in (ModelState.FAILED, ModelState.BACKOFF):
            self.forget_failure()
            self._set_state(ModelState.UNLOADED, self._stop_reason)
        elif self.state is ModelState.UNLOADED:
            self._notify()
        else:
            if self.state is ModelState.READY:
                self._set_state(ModelState.DRAINING, f"unloading {why}")
            self._unwanted.set()

    def tell(self, reason: str) -> None:
        """Why it is in the state in which it is."""
        self._set_state(self.state, reason)

    def retire(self, why: str) -> None:
        """`stop` it, and end its task then."""
        self.is_retired = True
        self.stop(why)
        self._wanted.set()

    def kill(self) -> None:
        """End its worker now."""
        if self._worker is not None:
            self._worker.kill()

    # ---- the task ----

    async def run(self) -> None:
        """Start the worker when it is wanted, and again when it died, until it is retired."""
        while True:
            while not self._wanted.is_set():  # it may be cleared between being set and our turn
                await self._wanted.wait()
            if self.is_retired:
                return
            self._unwanted.clear()
            try:
                await self._after(await self._run_worker())
            except Exception:  # other models go on
                log_bug(
                    logger,
                    "%s lost its worker to a bug of the daemon",
                    self.title,
                    model=self.spec.name,
                )
                await self._after(self._ending_of_bug())

    def _ending_of_bug(self) -> Ending:
        """As a crash: tried again some times, then given up."""
        if self._unwanted.is_set():
            return Ending(Cause.STOPPED, self._stop_reason)
        return Ending(Cause.CRASHED, "the daemon failed on a bug; its log has the story")

    async def _run_worker(self) -> Ending:
        """One worker from start to exit."""
        self.progress = Loading("start", 0.0)
        self._problem = None
        link = Link(
            on_load_message=self._take_load_message,
            on_lost=self._on_lost,
            on_step=self._owner.note_step,
            files=self.spec.files(),
        )
        self._link = link
        self._set_state(ModelState.LOADING, "")
        try:
            async with self._placer.lend(
                self._wanted_place(), on_wait=self._take_load_message, called_off=self._unwanted
            ) as place:
                self.place = place
                return await self._start_worker(place, link)
        except NoPlace as story:
            self._problem = ModelFailed(str(story), hint="change its `cpus` or `devices`")
            cause = Cause.LOAD_FAILED if story.is_permanent else Cause.LOAD_FAILED_FOR_NOW
            return Ending(cause, str(story))
        except CalledOff:
            return Ending(Cause.STOPPED, self._stop_reason)
        finally:
            self._link = None

    def _wanted_place(self) -> Wanted:
        spec = self.spec
        return Wanted(self.title, spec.load_of(self.index), spec.gpu, num_cpus=spec.num_cores)

    async def _start_worker(self, place: Place, link: Link) -> Ending:
        spec = self.spec
        try:
            worker = await spawn(
                spec.name,
                link,
                backend=spec.backend,
                devices=place.gpu.devices,
                cpus=place.cpus,
                num_threads=place.load.threads,
            )
        except OSError as error:
            story = f"no worker process could be started: {error}"
            return Ending(Cause.LOAD_FAILED_FOR_NOW, story)
        return await self._watch_worker(worker, place, link)

    async def _watch_worker(self, worker: WorkerProcess, place: Place, link: Link) -> Ending:
        self._started_at = started_at = time.monotonic()
        self._worker = worker
        self._owner.history.started()
        logger.info("%s: worker %d loads %s", self.title, worker.pid, place.load.path)
        try:
            link.send(place.load)
            status = await self._wait_exit(worker)
        except Exception:  # a bug: whoever comes next finds its memory free
            worker.kill()
            await worker.wait_exit()
            raise
        finally:
            self._worker = None
            self._link = None
            self._lose(link, worker)
            if link.has_delivered:
                self._policy.got_something_done()
        logger.info(
            "%s: worker %d ended after %.1f s with status %d",
            self.title,
            worker.pid,
            time.monotonic() - started_at,
            status,
        )
        if self._unwanted.is_set():
            return Ending(Cause.STOPPED, self._stop_reason)
        return ending_of(
            status,
            said=self._problem.message if self._problem else None,
            last_words=worker.last_words[-1] if worker.last_words else None,
            was_loading=self.state is ModelState.LOADING,
        )

    async def _wait_exit(self, worker: WorkerProcess) -> int:
        async with asyncio.TaskGroup() as tasks:
            stopper = tasks.create_task(self._stop_when_unwanted(worker))
            watcher = tasks.create_task(
                kill_when_stalled(worker, step_timeout_s=lambda: self._owner.step_timeout_s)
            )
            status = await worker.wait_exit()
            stopper.cancel()
            watcher.cancel()
        return status

    async def _stop_when_unwanted(self, worker: WorkerProcess) -> None:
        await self._unwanted.wait()
        await worker.link.wait_idle()
        await worker.stop()

    async def _after(self, ending: Ending) -> None:
        """Decide what follows a worker's end, and wait if that is a backoff."""
        self._owner.history.ended(ending.cause)
        story = ending.story
        match ending.cause:
            case Cause.STOPPED:
                self._set_state(ModelState.UNLOADED, story)
            case Cause.LOAD_FAILED:
                self._fail(story)
            case Cause.LOAD_FAILED_FOR_NOW:
                await self._give_room_back(story)
            case Cause.CRASHED:
                delay = self._policy.delay_after_crash_s(time.monotonic())
                if delay is None:
                    crashes = self._policy.num_recent_crashes
                    self._fail(f"{story} ({crashes} times in a row; given up)")
                else:
                    await self._restart(delay, story)
            case _:
                assert_never(ending.cause)

    def _fail(self, story: str) -> None:
        name = self.spec.name
        hint = self._problem.hint if self._problem else "see the log of the daemon"
        self._problem = ModelFailed(
            f"model {name} cannot be used: {story}", hint=f"{hint}; then `openclawctl load {name}`"
        )
        self._files_when_failed = self.spec.files()
        self._wanted.clear()
        self._set_state(ModelState.FAILED, story)

    async def _give_room_back(self, story: str) -> None:
        """There was no memory for it: others may have what there is, until it is tried again."""
        self._wanted.clear()
        if not self._owner.may_shrink():
            await self._back_off(self._policy.delay_after_failed_load_s(), story)
            if self.state is not ModelState.BACKOFF:
                return
        self._set_state(ModelState.UNLOADED, story)
        if self._owner.is_needed:
            self._owner.try_again()

    async def _back_off(self, delay_s: float, story: str) -> None:
        self._retry_at = time.monotonic() + delay_s
        when = f"in {delay_s:.1f} s" if delay_s else "now"
        self._set_state(ModelState.BACKOFF, f"{story}; next try {when}")
        while (left := self._retry_at - time.monotonic()) > 0 and self._is_backing_off:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()

    @property
    def _is_backing_off(self) -> bool:
        return self.state is ModelState.BACKOFF

    async def _restart(self, delay_s: float, story: str) -> None:
        """A worker that died keeps its room, if anybody needs it."""
        await self._back_off(delay_s, story)
        if self.state is ModelState.BACKOFF and not self._owner.is_needed:
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
                if self._link is not None:
                    self._link.context = info.get("context")
                self._policy.loaded()
                self._owner.history.loaded(time.monotonic() - self._started_at)
                if not self._unwanted.is_set():  # else it has been told to stop
                    notice = self.place.gpu.notice if self.place else ""
                    self._set_state(ModelState.READY, notice)
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
                "%s: worker %d is gone; it had %d requests",
                self.title,
                worker.pid,
                link.num_calls,
            )
        link.close(WorkerDied(f"the worker of model {self.spec.name} (pid {worker.pid}) died"))

    # ---- telling ----

    def _set_state(self, state: ModelState, reason: str) -> None:
        self.state = state
        self.reason = reason
        self.since = time.time()
        level = logging.ERROR if state in (ModelState.FAILED, ModelState.BACKOFF) else logging.INFO
        logger.log(
            level,
            "%s: %s%s",
            self.title,
            state.value,
            reason and f": {reason}",
            extra=fields(message_id=_MESSAGE_IDS.get(state), model=self.spec.name),
        )
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._owner.replica_changed(self)
