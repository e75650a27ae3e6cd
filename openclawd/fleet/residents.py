"""The models that are in memory: carries out what `residency.plan` decides.

Owns what each model needs (estimated, then measured), and when plans are made: whenever a model is
wanted or changes, and when time alone makes a difference. Starts and stops no worker: it tells
models to come and to make way. Knows no request.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import NoMemory, Problem
from openclawctl.wire.units import format_size
from openclawd.fleet.estimate import Estimate, estimate, shrunk
from openclawd.fleet.footprints import Footprints, fingerprint
from openclawd.fleet.host_memory import memory_budget, read_footprint
from openclawd.fleet.probing import probe
from openclawd.fleet.residency import (
    HOST,
    Need,
    Plan,
    Presence,
    Rules,
    Shortfall,
    Standing,
    plan,
    total,
)
from openclawd.fleet.spec import ModelState
from openclawd.observe.logs import log_bug

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from openclawd.fleet.model import Model
    from openclawd.fleet.spec import Files, ModelSpec
    from openclawd.worker.facts import ModelFacts
    from openclawd.worker.messages import Load

logger = logging.getLogger(__name__)

_BUDGET_AGE_S: Final = 0.2
_MEASURE_INTERVAL_S: Final = 30.0
"""Reading the footprint of a worker of 100 GiB takes its page tables' lock for a good part of a
second."""

_UNKNOWN: Final = Need({})
"""Of a model whose files say nothing: loading it will tell why."""


@dataclass(slots=True)
class _Known:
    """What is known of one model's files, as they were: `facts` None if they say nothing, `draft`
    those of its draft model."""

    files: Files
    facts: ModelFacts | None
    draft: ModelFacts | None = None


class Residents:
    """`models` are all there are; `budget_bytes` None follows what the host has. Call `want` for a
    model that is not there, `changed` when one changed, and `start` first."""

    def __init__(
        self,
        models: Callable[[], Iterable[Model]],
        *,
        budget_bytes: int | None,
        group_wait_s: float,
        footprints: Footprints,
        version: str,
    ) -> None:
        self._models = models
        self._budget_bytes = budget_bytes
        self._group_wait_s = group_wait_s
        self._footprints = footprints
        self._version = version
        self._known: dict[str, _Known] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_planning = False
        self._is_outdated = False
        self._lowered: set[str] = set()
        self._writing = asyncio.Lock()
        self._auto_bytes = 0
        self._auto_until = 0.0
        self._measure_at: dict[tuple[str, bool], float] = {}

    def start(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks

    def limit(self, budget_bytes: int | None, *, group_wait_s: float) -> None:
        """Other limits from now on. Nobody is sent away for them at once."""
        self._budget_bytes = budget_bytes
        self._group_wait_s = group_wait_s

    # ---- for models ----

    def want(self, model: Model) -> None:
        """Somebody waits for a model that is not there: it is told to come when there is room.
        Raises `NoMemory` if there never can be."""
        if _presence(model) is not Presence.OUT or self._facts_of(model) is None:
            return
        if model.is_shrunk and model.name not in self._lowered:
            model.resize(model.goal.load)  # perhaps there is room for all of it today
        shortfall = self._replan().refuse.get(model.name)
        if shortfall is not None and not self._make_smaller(model):
            raise self._problem(model, shortfall)

    def changed(self, model: Model) -> None:
        """A model came or went, or nobody uses it any more."""
        if model.state is ModelState.READY:
            self._measure(model)
        if any(each.wanted_since is not None for each in self._models()):
            # In a moment: those who waited for a model that is ready are to have it first.
            asyncio.get_running_loop().call_soon(self._replan)

    def lower(self, model: Model) -> bool:
        """There was no memory for it after all: have it need less, if it may. Whether it does."""
        if _presence(model) is not Presence.OUT:
            return False
        self._lowered.add(model.name)
        return self._make_smaller(model, at_once=True)

    def has_room_for_one_more(self, model: Model) -> bool:
        """Another worker of a model that is there, with the settings that it is to have."""
        known = self._known.get(model.name)
        if known is None:  # its files were not looked at, so it was never loaded
            return True
        one = self._estimate(model.goal, known).need(f"{known.files[0]}")
        needs = [self._need(each) for each in self._models() if _is_there(each)]
        return total([*needs, one])[HOST] <= self._budget()

    # ---- for people ----

    async def explain(self, model: Model) -> dict[str, Any]:
        """The arithmetic, and what would happen if the model were to be loaded now."""
        known = await self._wait_facts(model)
        sum_ = self._estimate(model.spec, known)
        budget = self._budget()
        return {
            "basis": sum_.basis,
            "parts": [asdict(part) for part in sum_.parts],
            "total_bytes": sum_.total_bytes,
            "num_workers": model.spec.scale.low,
            "budget_bytes": budget,
            "held_bytes": total(self._need(m) for m in self._models() if _is_there(m))[HOST],
            "is_loaded": _is_there(model),
            "can_fit": not self._would_be_refused(model),
            "fits_now": self._fits_now(model),
        }

    # ---- plans ----

    def _replan(self) -> Plan:
        """Make plans and carry them out, until nothing follows from it any more."""
        if self._is_planning:  # what a model told while it was being told what to do
            self._is_outdated = True
            return Plan()
        self._is_planning = True
        try:
            while True:
                self._is_outdated = False
                decided = self._plan()
                self._carry_out(decided)
                if not self._is_outdated:
                    return decided
        finally:
            self._is_planning = False

    def _plan(self) -> Plan:
        now = asyncio.get_running_loop().time()
        standings = [self._standing(*entry) for entry in self._labelled().items()]
        rules = Rules({HOST: self._budget()}, self._group_wait_s)
        return plan(standings, rules, now)

    def _labelled(self) -> dict[str, Model]:
        """Models by name. One that was taken from the configuration may still serve when there is
        another one of its name."""
        models: dict[str, Model] = {}
        for model in self._models():
            label = model.name
            while label in models:
                label += "'"
            models[label] = model
        return models

    def _carry_out(self, decided: Plan) -> None:
        models = self._labelled()
        for name, other in decided.leave.items():
            logger.info("model %s makes way for model %s", name, other)
            models[name].make_way()
        for name in decided.load:
            models[name].come()
        for name in decided.refuse:
            models[name].wake()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if decided.again_at < math.inf:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(decided.again_at, self._replan)

    def _standing(self, label: str, model: Model) -> Standing:
        return Standing(
            label,
            self._need(model),
            _presence(model),
            is_busy=model.num_leases > 0,
            has_newcomers=model.num_waiting > 0,
            is_pinned=model.spec.is_pinned,
            here_since=model.ready_at,
            used_at=model.used_at,
            min_residency_s=model.spec.min_residency_s,
            wanted_since=model.wanted_since if model.name in self._known else None,
            may_displace=not model.is_wanted_politely,
        )

    # ---- what models need ----

    def _facts_of(self, model: Model) -> _Known | None:
        """None while they are being found out; the model is woken when they are."""
        files = model.spec.files()
        known = self._known.get(model.name)
        if known is not None and known.files == files:
            return known
        if model.name not in self._probes:
            assert self._tasks is not None, "start() comes first"
            task = self._tasks.create_task(self._probe(model, files), name=f"probe {model.name}")
            self._probes[model.name] = task
        return None

    async def _wait_facts(self, model: Model) -> _Known:
        while (known := self._facts_of(model)) is None:
            await asyncio.wait([self._probes[model.name]])
        return known

    async def _probe(self, model: Model, files: Files) -> None:
        facts = draft = None
        load = model.spec.load
        try:
            facts = await probe(load.path)
            draft = await probe(load.draft_path) if load.draft_path else None
        except (Problem, OSError) as problem:
            logger.info("model %s: its size is not known: %s", model.name, problem)
        except Exception:
            log_bug(
                logger,
                "model %s: asking for its size failed on a bug",
                model.name,
                model=model.name,
            )
        finally:
            del self._probes[model.name]
        self._known[model.name] = _Known(files, facts, draft)
        model.wake()

    def _need(self, model: Model) -> Need:
        known = self._known.get(model.name)
        if known is None or known.facts is None:
            return _UNKNOWN
        weights = f"{known.files[0]}"
        num_workers = max(len(model.replicas), 1)
        return self._estimate(model.spec, known).need(weights, num_workers=num_workers)

    def _estimate(self, spec: ModelSpec, known: _Known) -> Estimate:
        """What one worker takes: as it was measured, else as it is computed."""
        if known.facts is None:
            return Estimate(())
        computed = estimate(known.facts, spec.load, draft=known.draft)
        measured = self._footprints.find(self._key(spec.load, known.files))
        return computed if measured is None else computed.corrected(measured)

    def _key(self, load: Load, files: Files) -> str:
        return fingerprint(load, files, self._version)

    def _measure(self, model: Model) -> None:
        """Look how much its workers really take, on a thread."""
        known = self._known.get(model.name)
        now = asyncio.get_running_loop().time()
        is_used = model.num_steps > 0
        due = self._measure_at.get((model.name, is_used), 0.0)
        if known is None or self._tasks is None or now < due:
            return
        self._measure_at[model.name, is_used] = now + _MEASURE_INTERVAL_S
        pids = [replica.worker_pid for replica in model.replicas]
        key = self._key(model.spec.load, known.files)
        task = self._note_footprints(key, [p for p in pids if p is not None], is_used=is_used)
        self._tasks.create_task(task, name=f"measure {model.name}")

    async def _note_footprints(self, key: str, pids: list[int], *, is_used: bool) -> None:
        found = await asyncio.to_thread(lambda: [read_footprint(pid) for pid in pids])
        seen = [footprint for footprint in found if footprint is not None]
        if not seen:
            return
        is_news = self._footprints.note(
            key,
            own_bytes=max(each.own_bytes for each in seen),
            pss_bytes=max(each.pss_bytes for each in seen),
            is_used=is_used,
        )
        if is_news:
            async with self._writing:  # one at a time, and the newest last
                await asyncio.to_thread(self._footprints.write, self._footprints.snapshot())

    def _budget(self) -> int:
        """What all may take together. Read anew now and then: many may ask at once."""
        if self._budget_bytes is not None:
            return self._budget_bytes
        now = asyncio.get_running_loop().time()
        if now >= self._auto_until:
            pids = [r.worker_pid for model in self._models() for r in model.replicas]
            self._auto_bytes = memory_budget(pid for pid in pids if pid is not None)
            self._auto_until = now + _BUDGET_AGE_S
        return self._auto_bytes

    # ---- when there is none ----

    def _make_smaller(self, model: Model, *, at_once: bool = False) -> bool:
        """Give it the largest settings that fit, of those that its configuration allows; with
        `at_once` the next smaller ones. Whether there are any."""
        spec = model.spec
        for load in _smaller(spec):
            model.resize(load)
            if at_once or not self._would_be_refused(model):
                logger.warning(
                    "model %s: memory is short, so it has %d sequences of %d tokens instead of %d "
                    "of %d",
                    model.name,
                    load.parallel,
                    load.context,
                    spec.load.parallel,
                    spec.load.context,
                )
                self._replan()
                return True
        model.resize(spec.load)
        return False

    def _would_be_refused(self, model: Model) -> bool:
        """If it were wanted now, and might displace others."""
        wanted = Standing(model.name, self._need(model), wanted_since=0.0)
        labelled = self._labelled().items()
        others = [self._standing(*entry) for entry in labelled if entry[1] is not model]
        rules = Rules({HOST: self._budget()}, self._group_wait_s)
        return model.name in plan([*others, wanted], rules, math.inf).refuse

    def _fits_now(self, model: Model) -> bool:
        """Without anybody leaving for it."""
        needs = [self._need(each) for each in self._models() if _is_there(each) or each is model]
        return total(needs)[HOST] <= self._budget()

    def _problem(self, model: Model, shortfall: Shortfall) -> NoMemory:
        load = model.spec.load
        staying = f"; {format_size(shortfall.held)} of it is held by models that stay"
        return NoMemory(
            f"model {model.name} needs {format_size(shortfall.needed)} of memory with"
            f" {load.parallel} sequences of {load.context} tokens, and all models together may"
            f" take {format_size(shortfall.budget)}{staying if shortfall.held else ''}",
            hint=f"lower its parallel, context or kv_tokens, let it shrink (min_parallel,"
            f" min_context), or raise resource_limits.memory; `openclawctl load --dry-run"
            f" {model.name}` shows the sum",
        )


def _smaller(spec: ModelSpec) -> list[Load]:
    return shrunk(
        spec.load,
        min_parallel=spec.min_parallel or spec.load.parallel,
        min_context=spec.min_context or spec.load.context,
    )


def _presence(model: Model) -> Presence:
    if model.state is ModelState.READY:
        return Presence.HERE
    if any(replica.holds_room for replica in model.replicas):
        return Presence.COMING
    if any(replica.link is not None for replica in model.replicas):
        return Presence.LEAVING
    return Presence.OUT


def _is_there(model: Model) -> bool:
    return _presence(model) is not Presence.OUT
