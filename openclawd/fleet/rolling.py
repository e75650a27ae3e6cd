"""Changing a model's workers while it serves: other settings, more of them, or fewer.

Owns the order in which workers come and go. A worker is stopped for a change only once another one
can take what comes next, unless there is no memory for both; what it was given it answers first.
That is why no request hears of a change.

When it goes wrong: workers with new settings that do not load for good are given up, and those with
the old ones stay (`Model.note` says so). Without room for both, an old one goes first, and then its
requests wait until the new one is loaded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from openclawd.fleet.autoscale import Autoscaler, Load
from openclawd.fleet.spec import ModelState

if TYPE_CHECKING:
    from openclawd.fleet.model import Model
    from openclawd.fleet.replica import Replica
    from openclawd.fleet.spec import ModelSpec

logger = logging.getLogger(__name__)

SCALE_INTERVAL_S: Final = 1.0
_WHY: Final = "because its settings have changed"


HasRoom = Callable[["Model"], bool]
"""Is there memory for one more worker of a model?"""


def has_room_for_one_more(model: Model) -> bool:
    return model.has_room_for_one_more()


async def change(
    model: Model, spec: ModelSpec, *, has_room: HasRoom = has_room_for_one_more
) -> None:
    """Bring a model to other settings; returns when all its workers have them, or cannot get them.
    May be cancelled at any time, and be followed by another change."""
    model.note = ""
    model.goal = spec
    is_to_be_loaded = spec.preload and not model.spec.preload
    if spec.is_same_worker(model.spec):
        model.adopt(spec)
    _replace_idle(model)
    is_possible = True
    while is_possible and (outdated := _outdated(model)):
        if len(_serving(model)) - len(outdated) < spec.scale.high:
            is_possible = await _replace(model, outdated[-1], has_room)
        else:
            outdated[-1].retire(_WHY)
    model.adopt(model.goal)
    _fill(model)
    if is_to_be_loaded and is_possible:
        model.want()


def _outdated(model: Model) -> list[Replica]:
    """Those with other settings, or of files that have changed, that are to be replaced."""
    return [
        each
        for each in _serving(model)
        if not each.spec.is_same_worker(model.goal) or each.has_old_files
    ]


def _replace_idle(model: Model) -> None:
    """Those that serve nobody. If none serves, there come as many, loaded as soon as somebody wants
    the model, or as these would have been, when there is room."""
    outdated = _outdated(model)
    idle = [each for each in outdated if each.state is not ModelState.READY]
    is_wanted = model.goal.preload or any(each.is_wanted for each in idle)
    for replica in idle:
        if len(idle) == len(outdated):
            model.add_replica()
        replica.retire(_WHY)
    if idle and len(idle) == len(outdated) and is_wanted:
        model.want()


async def _replace(model: Model, old: Replica, has_room: HasRoom) -> bool:
    """One that serves. False if the new settings do not load, so that the old ones stay."""
    if not has_room(model):
        logger.info("%s: there is no memory for another worker beside it", old.title)
        await _let_go(model, old)
    new = model.add_replica()
    new.want()
    await _settled(model, new)
    if new.state is ModelState.BACKOFF and not old.is_retired:
        logger.warning("%s: beside it another one does not load: %s", old.title, new.reason)
        await _let_go(model, old)
        new.forget_failure()
        await _settled(model, new)
    while new.state in (ModelState.BACKOFF, ModelState.LOADING):  # it is tried again, as any other
        await model.wait_change()
    if new.state is ModelState.FAILED:
        _give_up(model, old, new)
        return False
    old.retire(_WHY)
    return True


def _give_up(model: Model, old: Replica, new: Replica) -> None:
    if old.is_retired:
        return  # what was there before is gone, and this one says why
    model.note = f"the new settings cannot be used, and the old ones stay: {new.reason}"
    logger.error("model %s: %s", model.name, model.note)
    model.goal = model.spec
    new.retire("because it does not load")


async def _let_go(model: Model, old: Replica) -> None:
    """Stop it, and wait until its memory is free."""
    old.retire(_WHY)
    while old in model.replicas:
        await model.wait_change()


async def _settled(model: Model, replica: Replica) -> None:
    """Until it is ready, has failed, or is wanted no more."""
    while not (replica.is_settled or replica.is_retired):
        await model.wait_change()


def _fill(model: Model) -> None:
    """See that there are as many as there are to be."""
    replicas = _serving(model)
    scale = model.spec.scale
    for _ in range(len(replicas), scale.low):
        new = model.add_replica()
        if model.state is ModelState.READY:
            new.want()
    for replica in replicas[scale.high :]:
        replica.retire("because there are to be fewer")


async def keep_scaled(model: Model) -> None:
    """Follow the load of a model whose number of workers may change, until cancelled."""
    scaler = Autoscaler()
    loop = asyncio.get_running_loop()
    added: Replica | None = None
    while True:
        await asyncio.sleep(SCALE_INTERVAL_S)
        if added is not None and added.state in (ModelState.BACKOFF, ModelState.FAILED):
            logger.warning("%s: another worker does not load: %s", added.title, added.reason)
            added.retire("because it does not load")
            scaler.failed(loop.time())
        if added is not None and added.is_settled:
            added = None
        if model.spec is not model.goal:
            continue
        match scaler.step(_load_of(model), model.spec.scale, now=loop.time()):
            case 1 if model.has_room_for_one_more():
                added = model.add_replica()
                added.want()
            case -1:
                _serving(model)[-1].retire("because fewer are enough")


def _serving(model: Model) -> list[Replica]:
    """Those that are to stay, ready or not."""
    return [each for each in model.replicas if not each.is_retired]


def _load_of(model: Model) -> Load:
    replicas = _serving(model)
    return Load(
        num_workers=len(replicas),
        slots=max((each.num_slots for each in replicas), default=model.spec.load.parallel),
        busy=sum(each.link.num_sequences for each in replicas if each.link),
        longest_wait_s=model.turns.longest_wait_s(),
        is_settled=all(each.state is ModelState.READY for each in replicas),
    )
