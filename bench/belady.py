"""The fewest loads that could have served a recorded stream of requests: what a fleet's residency
is measured against.

All with room for a number of models of one size, and with loads and answers that take no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_Pending = tuple[tuple[float, str], ...]
_State = tuple[frozenset[str], _Pending]

_HOPELESS = 4
"""Two loads lead from any of two models to any other two, and two more serve who waits there: what
has cost more than that above the best is never better later."""


def belady(trace: Sequence[tuple[float, str]], capacity: int) -> int:
    """Belady's optimum (1966): of those in memory, the one leaves that is wanted last again."""
    present: set[str] = set()
    loads = 0
    for position, (_, model) in enumerate(trace):
        if model in present:
            continue
        loads += 1
        if len(present) == capacity:
            later = [each for _, each in trace[position + 1 :]]
            present.remove(max(present, key=lambda m: later.index(m) if m in later else len(later)))
        present.add(model)
    return loads


def grouped_optimum(trace: Sequence[tuple[float, str]], capacity: int, window_s: float) -> int:
    """The same where each request may wait for `window_s`: all of the future is known, and those of
    one model that wait together cost one load. Exact, for up to 2 places.

    Nothing is gained by loading before somebody can wait no longer, for whatever is done then
    serves all that an earlier load would have, so that is when this tries who might leave.
    """
    assert capacity <= _HOPELESS // 2
    costs: dict[_State, int] = {(frozenset(), ()): 0}
    for time, model in trace:
        costs = _serve_overdue(costs, capacity, before=time - window_s)
        costs = _cheapest((_arrive(state, time, model), cost) for state, cost in costs.items())
    return min(_serve_overdue(costs, capacity, before=float("inf")).values())


def least_recently_used(trace: Sequence[tuple[float, str]], capacity: int) -> int:
    """Loads if nobody waits, and the one leaves that was not used for longest."""
    used: dict[str, int] = {}
    loads = 0
    for position, (_, model) in enumerate(trace):
        if model not in used:
            loads += 1
            if len(used) == capacity:
                del used[min(used, key=used.__getitem__)]
        used[model] = position
    return loads


def _arrive(state: _State, time: float, model: str) -> _State:
    present, pending = state
    if model in present or any(name == model for _, name in pending):
        return state
    return present, (*pending, (time, model))


def _serve_overdue(
    costs: Mapping[_State, int], capacity: int, *, before: float
) -> dict[_State, int]:
    """Load, in every way there is, what was asked for before that time; `pending` is in order."""
    done: dict[_State, int] = {}
    todo = dict(costs)
    while todo:
        done = _cheapest(
            [*done.items(), *((s, c) for s, c in todo.items() if not _is_due(s, before))]
        )
        todo = _cheapest(
            (after, cost + 1)
            for state, cost in todo.items()
            if _is_due(state, before)
            for after in _loads(state, capacity)
        )
    least = min(done.values())
    return {state: cost for state, cost in done.items() if cost <= least + _HOPELESS}


def _is_due(state: _State, before: float) -> bool:
    return bool(state[1]) and state[1][0][0] < before


def _loads(state: _State, capacity: int) -> list[_State]:
    """Every way to load the model that was waited for longest."""
    present, ((_, model), *rest) = state
    if len(present) < capacity:
        return [(present | {model}, tuple(rest))]
    return [(present - {leaving} | {model}, tuple(rest)) for leaving in present]


def _cheapest(states: Iterable[tuple[_State, int]]) -> dict[_State, int]:
    costs: dict[_State, int] = {}
    for state, cost in states:
        costs[state] = min(cost, costs.get(state, cost))
    return costs
