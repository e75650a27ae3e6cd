"""What of the machine a worker gets before it is started: CPUs, GPUs and their memory, its file.

Owns the waiting for a GPU, and what becomes of a model whose GPU does not come: it is computed on
the CPU, which its state and the log say, or it does not load (`without_gpu`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from openclawd.fleet.gpus import budgets
from openclawd.fleet.placement import NoPlace
from openclawd.worker.messages import Loading

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence

    from openclawd.fleet.gpu_watch import GpuWatch
    from openclawd.fleet.gpus import GpuReport, GpuWish
    from openclawd.fleet.placement import CoreAllocator
    from openclawd.fleet.staging import Stager
    from openclawd.observe.gpus import Gpu
    from openclawd.worker.messages import Load

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GpuPlace:
    """`devices` are the GPUs a worker can see: all (empty) or none (None). `budgets` are bytes on
    each; empty where they are not known. `notice` says what it does without, if anything."""

    devices: tuple[str, ...] | None = ()
    budgets: tuple[int, ...] = ()
    node: int | None = None
    notice: str = ""

    def applied_to(self, load: Load, wish: GpuWish) -> Load:
        """What the worker is to be told."""
        if self.devices is None:
            return replace(load, gpu_layers=0)
        needs_gpu = wish.is_wanted and wish.fails_without
        return replace(load, gpu_budgets=list(self.budgets), needs_gpu=needs_gpu)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a worker is to have. `title` names it in the log; `num_cpus` None is those that are
    shared."""

    title: str
    load: Load
    gpu: GpuWish
    num_cpus: int | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """What it has. `cpus` empty: all of the daemon's."""

    load: Load
    gpu: GpuPlace
    cpus: frozenset[int]


class CalledOff(Exception):
    """Nobody wants the worker any more."""


class Placer:
    """One for all workers. `gpu_memory_bytes` is for one worker; `gpu_wait_s` counts from now."""

    def __init__(
        self,
        cpus: CoreAllocator,
        gpus: GpuWatch,
        stager: Stager,
        *,
        gpu_memory_bytes: int | None,
        gpu_wait_s: float,
    ) -> None:
        self.cpus = cpus
        self.gpus = gpus
        self.stager = stager
        self._gpu_memory_bytes = gpu_memory_bytes
        self._gpu_deadline_s = time.monotonic() + gpu_wait_s

    def adopt(self, gpu_memory_bytes: int | None, named: Mapping[str, frozenset[int]]) -> None:
        """Go on by another configuration, with every worker that is started from now on."""
        self._gpu_memory_bytes = gpu_memory_bytes
        self.cpus.name(named)

    @contextlib.asynccontextmanager
    async def lend(
        self, wanted: Wanted, *, on_wait: Callable[[Loading], object], called_off: asyncio.Event
    ) -> AsyncIterator[Place]:
        """A place until the block ends. May wait for a GPU, or for a copy of the model, and tells
        of it. Raises `NoPlace`, and `CalledOff` when that is set meanwhile."""
        load = wanted.load
        looking = self.place_on_gpu(wanted.title, wanted.gpu, on_wait)
        gpu = await _unless(called_off, looking)
        path = await _unless(called_off, self.stager.stage(wanted.title, load.path, on_wait))
        with self.cpus.lend(load.name, wanted.num_cpus, near=gpu.node) as cpus:
            yield Place(replace(gpu.applied_to(load, wanted.gpu), path=path), gpu, cpus)

    async def place_on_gpu(
        self, title: str, wish: GpuWish, on_wait: Callable[[Loading], object]
    ) -> GpuPlace:
        """Which GPUs a worker gets; waits for them while the daemon is young. `title` names the
        worker in the log. Raises `NoPlace`."""
        if wish.is_none:
            return GpuPlace(devices=None)
        report = self.gpus.report
        if not wish.is_wanted and not report.gpus:
            return GpuPlace()
        if wish.is_wanted and not self._is_there(report, wish.devices):
            await self._wait_for_gpu(title, wish.devices, on_wait)
        else:
            await self.gpus.look()
        return self._place(title, wish, self.gpus.report)

    def _place(self, title: str, wish: GpuWish, report: GpuReport) -> GpuPlace:
        found, missing = report.find(wish.devices)
        if found and not missing:
            return GpuPlace(
                devices=wish.devices,
                budgets=tuple(budgets(found, self._gpu_memory_bytes)),
                node=_common_node(found),
            )
        if not wish.is_wanted or (self.gpus.is_other_kind_likely and not wish.devices):
            return GpuPlace()
        story = _story(missing, report)
        if wish.fails_without:
            raise NoPlace(f"{story}, and without_gpu is fail", is_permanent=False)
        logger.warning(
            "%s is computed on the CPU, though its configuration wants a GPU: %s", title, story
        )
        return GpuPlace(devices=None, notice=f"on the CPU: {story}")

    @staticmethod
    def _is_there(report: GpuReport, devices: Sequence[str]) -> bool:
        found, missing = report.find(devices)
        return bool(found) and not missing

    async def _wait_for_gpu(
        self, title: str, devices: Sequence[str], on_wait: Callable[[Loading], object]
    ) -> None:
        """Until they are there, or the daemon has been up for `gpu_wait`. Looks once at least."""
        begun_s = time.monotonic()
        left_s = max(self._gpu_deadline_s - begun_s, 0.0)
        if left_s:
            logger.info("%s waits for a GPU, %.0f s at most", title, left_s)

        def is_there(report: GpuReport) -> bool:
            passed = (time.monotonic() - begun_s) / left_s if left_s else 1.0
            on_wait(Loading("waiting for a GPU", min(passed, 1.0)))
            return self._is_there(report, devices)

        if not is_there(await self.gpus.look()):
            await self.gpus.wait_for(is_there, self._gpu_deadline_s - time.monotonic())


async def _unless(called_off: asyncio.Event, work: Coroutine[Any, Any, Result]) -> Result:
    """What it results in. Raises `CalledOff` if that is first."""
    task, stopper = asyncio.create_task(work), asyncio.create_task(called_off.wait())
    try:
        await asyncio.wait((task, stopper), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise CalledOff
        return task.result()
    finally:
        task.cancel()
        stopper.cancel()
        await asyncio.gather(task, stopper, return_exceptions=True)


def _story(missing: Sequence[str], report: GpuReport) -> str:
    if not report.gpus:
        return f"there is no GPU ({report.problem})"
    there = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in report.gpus)
    return f"there is no GPU {', '.join(missing)}; there are: {there}"


def _common_node(gpus: Sequence[Gpu]) -> int | None:
    """The NUMA node they are all attached to."""
    nodes = {gpu.node for gpu in gpus}
    return nodes.pop() if len(nodes) == 1 else None
