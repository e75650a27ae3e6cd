"""A model's workers are replaced while it serves, whatever becomes of the new ones. Real workers,
of a model that loads in no time."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from fleet.placers import placer

from openclawctl.wire.errors import ModelFailed, WorkerDied
from openclawd.fleet.ending import Cause
from openclawd.fleet.footprints import Footprints
from openclawd.fleet.model import Model
from openclawd.fleet.residents import Residents
from openclawd.fleet.rolling import change, keep_scaled
from openclawd.fleet.spec import ModelSpec, ModelState, Scale
from openclawd.fleet.submission import submit
from openclawd.worker.messages import Ended, Load, Prepared, Start

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from models.library import ModelLibrary

    from openclawd.fleet.submission import Submission

TIMEOUT_S = 60


@pytest.fixture
def spec(models: ModelLibrary) -> ModelSpec:
    load = Load(
        name="m",
        path=str(models.tiny("full")),
        parallel=2,
        context=64,
        kv_tokens=128,
        batch_tokens=64,
        threads=1,
    )
    return ModelSpec(load)


def with_load(spec: ModelSpec, **values: Any) -> ModelSpec:
    return replace(spec, load=replace(spec.load, **values))


@contextlib.asynccontextmanager
async def running(spec: ModelSpec) -> AsyncIterator[Model]:
    residents = Residents(
        lambda: [model],
        budget_bytes=None,
        group_wait_s=0.0,
        footprints=Footprints(None),
        version="",
    )
    model = Model(
        spec,
        placer=placer(),
        residents=residents,
        on_change=lambda model: None,
        max_waiting=10,
        max_skips=10,
    )
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        residents.start(tasks)
        tasks.create_task(model.run())
        try:
            yield model
        finally:
            await model.leave()


@contextlib.asynccontextmanager
async def asked(model: Model) -> AsyncIterator[Submission]:
    """A request that has been read, and takes a while once it is started."""
    params = {"prompt": [1, 2, 3]}
    async with submit(model, "generate", params, owner="t", on_loading=print) as submission:
        assert isinstance(await submission.prepare(), Prepared)
        yield submission


async def compute(submission: Submission, *, max_tokens: int = 40) -> Ended:
    sampling = {"temperature": 0.0, "ignore_eos": True}
    start = Start(rid=0, max_tokens=max_tokens, sampling=sampling)
    ended = await submission.compute(start, lambda output: None)
    assert ended is not None
    return ended


def pids(model: Model) -> list[int | None]:
    return [replica.worker_pid for replica in model.replicas]


async def wait_state(model: Model, state: ModelState) -> None:
    while model.state is not state:
        await model.wait_change()


def test_a_bug_costs_a_model_its_worker_and_nobody_else_anything(spec: ModelSpec) -> None:
    """What it is to load can be sent to no worker: half a character is no UTF-8."""

    async def run() -> None:
        async with running(with_load(spec, system_prompts=["\ud800"])) as model:
            model.want()
            await wait_state(model, ModelState.BACKOFF)
            assert "the daemon failed on a bug; its log has the story" in model.reason
            assert model.history.exits[Cause.CRASHED] == model.history.num_starts
            assert pids(model) == [None]

    asyncio.run(run())


def test_the_old_worker_answers_what_it_has_and_the_new_one_what_comes(spec: ModelSpec) -> None:
    async def run() -> None:
        async with running(spec) as model:
            async with asked(model) as first:
                (old,) = pids(model)
                changing = asyncio.create_task(change(model, with_load(spec, parallel=3)))
                while model.spec.load.parallel != 3:
                    await model.wait_change()
                async with asked(model) as second:
                    assert (await compute(second)).completion_tokens == 40
                assert old in pids(model), "it still has the first request"
                assert (await compute(first)).completion_tokens == 40
            await changing
            while old in pids(model):
                await model.wait_change()
            assert model.turns.num_places == 3
            assert [each.state for each in model.replicas] == [ModelState.READY]

    asyncio.run(run())


def test_what_does_not_fit_the_new_worker_is_told_so_if_the_old_one_dies(spec: ModelSpec) -> None:
    async def run() -> None:
        async with running(spec) as model, asked(model) as first:
            changing = asyncio.create_task(change(model, with_load(spec, context=32)))
            while model.spec.load.context != 32:
                await model.wait_change()
            model.replicas[0].kill()
            with pytest.raises((ModelFailed, WorkerDied), match="has 32 tokens of context now"):
                await compute(first)
            await changing

    asyncio.run(run())


def test_without_room_the_old_one_goes_first_and_who_comes_meanwhile_waits(
    spec: ModelSpec,
) -> None:
    async def run() -> None:
        async with running(spec) as model:
            async with asked(model) as first:
                changing = asyncio.create_task(
                    change(model, with_load(spec, context=32), has_room=lambda model: False)
                )
                await wait_state(model, ModelState.DRAINING)
                later = asyncio.create_task(ask_and_compute(model))
                assert (await compute(first)).completion_tokens == 40
                assert len(model.replicas) == 1
            assert (await later).completion_tokens == 5
            await changing
            assert [each.spec.load.context for each in model.replicas] == [32]

    async def ask_and_compute(model: Model) -> Ended:
        async with asked(model) as submission:
            return await compute(submission, max_tokens=5)

    asyncio.run(run())


def test_settings_that_do_not_load_leave_the_old_workers(spec: ModelSpec, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF, not")

    async def run() -> None:
        async with running(replace(spec, scale=Scale(2, 2))) as model:
            await model.load(print)
            while model.turns.num_places < 4:
                await model.wait_change()
            before = pids(model)
            await change(model, with_load(model.spec, path=str(bad)))
            while len(model.replicas) > 2:
                await model.wait_change()
            assert (pids(model), model.state) == (before, ModelState.READY)
            assert "the old ones stay" in model.reason
            await change(model, model.spec)
            assert (pids(model), model.reason) == (before, "")

    asyncio.run(run())


def test_a_change_takes_the_place_of_one_that_is_under_way(spec: ModelSpec) -> None:
    async def run() -> None:
        async with running(spec) as model:
            await model.load(print)
            (old,) = pids(model)
            first = asyncio.create_task(change(model, with_load(spec, parallel=3)))
            while len(model.replicas) == 1:
                await model.wait_change()
            first.cancel()
            await change(model, with_load(spec, parallel=4))
            while len(model.replicas) > 1:
                await model.wait_change()
            assert old not in pids(model)
            assert [each.spec.load.parallel for each in model.replicas] == [4]

    asyncio.run(run())


def test_one_that_failed_is_loaded_with_the_new_settings(spec: ModelSpec, tmp_path: Path) -> None:
    missing = with_load(spec, path=str(tmp_path / "missing.gguf"))

    async def run() -> None:
        async with running(missing) as model:
            with pytest.raises(ModelFailed):
                await model.load(print)
            await change(model, replace(spec, preload=True))
            await wait_state(model, ModelState.READY)

    asyncio.run(run())


def test_other_numbers_of_workers_come_and_go_without_replacing_any(spec: ModelSpec) -> None:
    async def run() -> None:
        async with running(spec) as model:
            await model.load(print)
            (first,) = pids(model)
            await change(model, replace(spec, scale=Scale(3, 3)))
            while model.turns.num_places < 6:
                await model.wait_change()
            assert first in pids(model)
            await change(model, replace(spec, scale=Scale(1, 1)))
            while len(model.replicas) > 1:
                await model.wait_change()
            assert (pids(model), model.turns.num_places) == ([first], 2)

    asyncio.run(run())


def test_a_model_that_nobody_uses_changes_without_being_loaded(spec: ModelSpec) -> None:
    async def run() -> None:
        async with running(spec) as model:
            await change(model, with_load(spec, parallel=4))
            while len(model.replicas) > 1:
                await model.wait_change()
            assert (model.state, pids(model)) == (ModelState.UNLOADED, [None])
            assert (model.spec.load.parallel, model.turns.num_places) == (4, 4)
            async with asked(model) as submission:
                assert (await compute(submission, max_tokens=3)).completion_tokens == 3

    asyncio.run(run())


def test_a_model_that_is_ready_says_which_of_its_workers_is_not(spec: ModelSpec) -> None:
    async def run() -> None:
        async with running(replace(spec, scale=Scale(2, 2))) as model:
            await model.load(print)
            for _ in range(2):  # after the first death it is started again at once
                while model.turns.num_places < 4:
                    await model.wait_change()
                model.replicas[1].kill()
                while model.turns.num_places == 4:
                    await model.wait_change()
            while not model.reason:
                await model.wait_change()
            assert model.reason.startswith("replica 2: its worker was killed by SIGKILL; next try")
            assert model.state is ModelState.READY

    asyncio.run(run())


def test_there_is_another_worker_as_soon_as_somebody_has_waited(spec: ModelSpec) -> None:
    async def run() -> None:
        growing = with_load(replace(spec, scale=Scale(1, 2)), parallel=1)
        async with running(growing) as model, asyncio.TaskGroup() as tasks:
            scaling = tasks.create_task(keep_scaled(model))
            await model.load(print)
            async with model.turns.take(print), model.turns.take(print):
                assert len(model.replicas) == 2
                assert model.turns.num_places == 2
            scaling.cancel()

    asyncio.run(run())
