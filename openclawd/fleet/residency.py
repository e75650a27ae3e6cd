"""Which models are in memory: who may come in, and who leaves for whom. Pure: what is the case and
`now` in, a plan out; who carries it out is `residents.py`'s.

Rules:

- A model is loaded when there is room for it on every device, and not before.
- Where there is none, others leave: those that were not used for longest, and only as many as are
  needed. A pinned one never leaves, nor one that is being loaded. One that is in use takes no
  further requests, and leaves when those it has have ended.
- A model leaves at once when it was not used for `IDLE_WAITS` times `group_wait_s`. One that was
  used since is left alone until somebody has waited for `group_wait_s`, and until it was there for
  its `min_residency_s`: so requests that alternate between models that do not fit together are
  served in groups, and each group costs one load.
- Who waits longest comes first, and the room that is made for it is not given to others.
- What could not fit if everything but the pinned ones left is refused at once, with the numbers.

`now` and all times are of one monotonic clock, in seconds; all sizes are bytes.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

IDLE_WAITS: Final = 3.0
"""With 1, a random stream of one request a second for four models of which two fit costs 1.75 times
the loads that it must, with 3 it is 1.35, with 5 it is 1.33; with more requests there is no
difference (simulated with a `group_wait_s` of 2, 2026-11-29)."""

HOST: Final = "cpu"
"""The device that is the host's own memory."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a model takes of each device. Models with the same `weights` share `weights_bytes` of
    the host's memory: they map one file."""

    own: Mapping[str, int]
    weights: str = ""
    weights_bytes: int = 0


def total(needs: Iterable[Need]) -> Counter[str]:
    """What models take together, by device."""
    taken: Counter[str] = Counter()
    shared: dict[str, int] = {}
    for need in needs:
        taken.update(need.own)
        if need.weights:
            shared[need.weights] = max(need.weights_bytes, shared.get(need.weights, 0))
        else:
            taken[HOST] += need.weights_bytes
    taken[HOST] += sum(shared.values())
    return taken


class Presence(enum.Enum):
    OUT = enum.auto()
    COMING = enum.auto()
    HERE = enum.auto()
    LEAVING = enum.auto()


@dataclass(frozen=True, slots=True)
class Standing:
    """One model at this moment. `used_at` is when its last request ended, or when it came;
    `wanted_since` when the oldest request came that waits for it, None if none does. While it
    `has_newcomers`, requests that waited for it are about to be served, and it stays for these.
    With `may_displace` False nobody leaves for it."""

    name: str
    need: Need
    presence: Presence = Presence.OUT
    is_busy: bool = False
    has_newcomers: bool = False
    is_pinned: bool = False
    here_since: float = 0.0
    used_at: float = 0.0
    min_residency_s: float = 0.0
    wanted_since: float | None = None
    may_displace: bool = True


@dataclass(frozen=True, slots=True)
class Rules:
    """`budget` is what all models may take of each device; one that is not in it has no limit."""

    budget: Mapping[str, int]
    group_wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Why a model cannot come: it needs `needed` of a device, of which there is `budget`, and
    `held` is taken by models that stay (`by`)."""

    device: str
    needed: int
    budget: int
    held: int = 0
    by: tuple[str, ...] = ()


@dataclass(slots=True)
class Plan:
    """What is to be done now. `leave` says of each model for whom. `waits` says of each who waits
    for room what it waits for. `again_at` is when time alone changes the plan."""

    load: list[str] = field(default_factory=list)
    leave: dict[str, str] = field(default_factory=dict)
    refuse: dict[str, Shortfall] = field(default_factory=dict)
    waits: dict[str, str] = field(default_factory=dict)
    again_at: float = math.inf


def plan(models: Collection[Standing], rules: Rules, now: float) -> Plan:
    """What follows from how it stands."""
    planning = _Planning(models, rules, now)
    for wanted in _line(models):
        planning.find_room(wanted)
    return planning.plan


def _line(models: Iterable[Standing]) -> Iterator[Standing]:
    """Who waits, the longest first."""
    waiting = [
        (model.wanted_since, model.name, model)
        for model in models
        if model.presence is Presence.OUT and model.wanted_since is not None
    ]
    for _, _, model in sorted(waiting, key=lambda entry: entry[:2]):
        yield model


class _Planning:
    """A plan in the making. `_staying` are models that hold memory and are not to leave, `_going`
    those that do, `_claims` who was promised room."""

    def __init__(self, models: Iterable[Standing], rules: Rules, now: float) -> None:
        self.plan = Plan()
        self._rules = rules
        self._now = now
        self._staying = [m for m in models if m.presence in (Presence.COMING, Presence.HERE)]
        self._going = [m for m in models if m.presence is Presence.LEAVING]
        self._claims: list[Standing] = []

    def find_room(self, wanted: Standing) -> None:
        if self._fits([*self._staying, *self._going, *self._claims, wanted]):
            self._claims.append(wanted)
            self.plan.load.append(wanted.name)
        elif shortfall := self._shortfall_for_good(wanted):
            self.plan.refuse[wanted.name] = shortfall
        elif self._fits([*self._staying, *self._claims, wanted]):
            self._claims.append(wanted)
            self._wait_for(wanted, self._going)
        else:
            self._displace(wanted)

    def _shortfall_for_good(self, wanted: Standing) -> Shortfall | None:
        """Of what `wanted` is short whatever leaves that may."""
        bound = [m for m in self._staying if m.is_pinned or not wanted.may_displace]
        if not wanted.may_displace:
            bound += self._claims
        together, alone = total(m.need for m in [*bound, wanted]), total([wanted.need])
        for device, most in self._rules.budget.items():
            if together[device] > most and alone[device]:
                held = total(m.need for m in bound)[device]
                names = tuple(sorted(m.name for m in bound))
                return Shortfall(device, alone[device], most, held, names)
        return None

    def _displace(self, wanted: Standing) -> None:
        """Have others leave for it, now or when they may."""
        times = {m.name: self._may_go_at(m, wanted) for m in self._staying if _can_go(m)}
        now_ones = [m for m in self._staying if times.get(m.name, math.inf) <= self._now]
        if victims := self._choose(now_ones, wanted):
            for victim in victims:
                self._staying.remove(victim)
                self._going.append(victim)
                self.plan.leave[victim.name] = wanted.name
            self._claims.append(wanted)
            self._wait_for(wanted, victims)
            return
        self._wait_for(wanted, [m for m in self._staying if m.name in times] or self._staying)
        later = [time for time in times.values() if self._now < time < math.inf]
        self.plan.again_at = min([self.plan.again_at, *later])
        if self._has_waited_enough(wanted):
            self._claims.append(wanted)  # nobody who came later takes what becomes free

    def _may_go_at(self, model: Standing, wanted: Standing) -> float:
        assert wanted.wanted_since is not None
        wait_s = self._rules.group_wait_s
        idle_at = math.inf if model.is_busy else model.used_at + IDLE_WAITS * wait_s
        forced_at = max(wanted.wanted_since + wait_s, model.here_since + model.min_residency_s)
        return min(idle_at, forced_at)

    def _choose(self, candidates: list[Standing], wanted: Standing) -> list[Standing]:
        """The least recently used whose room is enough; none if it is not."""
        chosen: list[Standing] = []
        for model in sorted(candidates, key=_last_use):
            chosen.append(model)
            if self._fits_without(chosen, wanted):
                break
        else:
            return []
        for model in reversed(chosen[:-1]):  # a large one may have made smaller ones needless
            without = [m for m in chosen if m is not model]
            if self._fits_without(without, wanted):
                chosen = without
        return chosen

    def _fits_without(self, leaving: list[Standing], wanted: Standing) -> bool:
        staying = [m for m in self._staying if m not in leaving]
        return self._fits([*staying, *self._claims, wanted])

    def _fits(self, models: Iterable[Standing]) -> bool:
        taken = total(model.need for model in models)
        return all(taken[device] <= most for device, most in self._rules.budget.items())

    def _has_waited_enough(self, wanted: Standing) -> bool:
        assert wanted.wanted_since is not None
        return self._now >= wanted.wanted_since + self._rules.group_wait_s

    def _wait_for(self, wanted: Standing, others: Iterable[Standing]) -> None:
        names = sorted(other.name for other in others)
        self.plan.waits[wanted.name] = ", ".join(names)


def _can_go(model: Standing) -> bool:
    return model.presence is Presence.HERE and not model.is_pinned and not model.has_newcomers


def _last_use(model: Standing) -> tuple[bool, float]:
    """The order in which models leave. One that is in use was used just now; of those the one goes
    first that was there for longest."""
    return (True, model.here_since) if model.is_busy else (False, model.used_at)
