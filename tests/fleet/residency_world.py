"""Models, requests and a clock for `openclawd.fleet.residency`: what its plans come to.

Loads and answers take the time they are given; nothing else takes any. A request holds its model
from when it is there until the answer is complete, as `Model.lease` does.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from openclawd.fleet.residency import HOST, Need, Plan, Presence, Rules, Standing, plan, total

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(slots=True)
class Model:
    name: str
    need: Need
    is_pinned: bool
    presence: Presence = Presence.OUT
    here_since: float = 0.0
    used_at: float = 0.0
    running: int = 0
    waiting: list[float] = field(default_factory=list)


class World:
    """One run. `served` are (arrival, wait) of each request, `refused` the arrivals of others."""

    def __init__(
        self,
        sizes: Mapping[str, int],
        rules: Rules,
        *,
        load_s: float = 0.0,
        answer_s: float = 0.0,
        pinned: Sequence[str] = (),
        min_residency_s: float = 0.0,
    ) -> None:
        self._rules = rules
        self._load_s = load_s
        self._answer_s = answer_s
        self._min_residency_s = min_residency_s
        self.models = {
            name: Model(name, Need({HOST: size}), name in pinned) for name, size in sizes.items()
        }
        self.num_loads = 0
        self.served: list[tuple[float, float]] = []
        self.refused: list[float] = []
        self._now = 0.0
        self._events: list[tuple[float, int, str, str]] = []
        self._order = itertools.count()

    def run(self, trace: Sequence[tuple[float, str]]) -> None:
        """Until every request has its answer."""
        for time, name in trace:
            self._at(time, "arrive", name)
        while self._events:
            self._now, _, kind, name = heapq.heappop(self._events)
            getattr(self, f"_{kind}")(self.models.get(name))
            self._carry_out()
        assert not any(model.waiting or model.running for model in self.models.values())

    def _at(self, time: float, kind: str, name: str) -> None:
        heapq.heappush(self._events, (time, next(self._order), kind, name))

    def _arrive(self, model: Model) -> None:
        model.waiting.append(self._now)
        self._serve(model)

    def _loaded(self, model: Model) -> None:
        model.presence = Presence.HERE
        model.here_since = model.used_at = self._now
        self._serve(model)

    def _answered(self, model: Model) -> None:
        model.running -= 1
        model.used_at = self._now

    def _wake(self, model: None) -> None:
        pass

    def _serve(self, model: Model) -> None:
        if model.presence is Presence.HERE:
            for arrival in model.waiting:
                model.running += 1
                self.served.append((arrival, self._now - arrival))
                self._at(self._now + self._answer_s, "answered", model.name)
            model.waiting.clear()

    def _carry_out(self) -> None:
        """Follow plans until one has nothing to do."""
        for model in self.models.values():
            if model.presence is Presence.LEAVING and not model.running:
                model.presence = Presence.OUT
        decided = self._plan()
        for name in decided.leave:
            assert self.models[name].presence is Presence.HERE
            assert not self.models[name].is_pinned
            self.models[name].presence = Presence.LEAVING
        for name in decided.load:
            assert self.models[name].presence is Presence.OUT
            assert not self.models[name].running, "loaded while its requests run"
            self.models[name].presence = Presence.COMING
            self.num_loads += 1
            self._at(self._now + self._load_s, "loaded", name)
        for name in decided.refuse:
            self.refused += self.models[name].waiting
            self.models[name].waiting.clear()
        assert total(self._held())[HOST] <= self._rules.budget.get(HOST, math.inf)
        if decided.leave:
            self._carry_out()
        elif decided.again_at < math.inf:
            assert decided.again_at > self._now
            self._at(decided.again_at, "wake", "")

    def _plan(self) -> Plan:
        return plan([self._standing(m) for m in self.models.values()], self._rules, self._now)

    def _standing(self, model: Model) -> Standing:
        return Standing(
            model.name,
            model.need,
            model.presence,
            is_busy=model.running > 0,
            is_pinned=model.is_pinned,
            here_since=model.here_since,
            used_at=model.used_at,
            min_residency_s=self._min_residency_s,
            wanted_since=min(model.waiting, default=None),
        )

    def _held(self) -> list[Need]:
        return [m.need for m in self.models.values() if m.presence is not Presence.OUT]


def random_trace(
    num_requests: int, names: Sequence[str], *, per_second: float, seed: int
) -> list[tuple[float, str]]:
    """Requests that come at random, each for a model at random."""
    source = random.Random(seed)
    gaps = [source.expovariate(per_second) for _ in range(num_requests)]
    return [(time, source.choice(names)) for time in itertools.accumulate(gaps)]
