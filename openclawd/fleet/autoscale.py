"""When a model gets one more worker, or one fewer. Pure: what is seen and `now` in, decisions out.

Rules: one more as soon as a request has waited for `GROW_AFTER_S` although every worker is ready,
if there is room for it; the last one goes when for `SHRINK_AFTER_S` nobody had to wait and those
that would be left could have computed all there was. After a worker that did not come, none is
tried for `RETRY_AFTER_S`. Starting one costs seconds and memory and stopping one costs its
prefixes, so it grows soon and shrinks late.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from openclawd.fleet.spec import Scale

GROW_AFTER_S: Final = 2.0
SHRINK_AFTER_S: Final = 120.0
RETRY_AFTER_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Load:
    """A model at one moment. `num_workers` it has, all of them ready if `is_settled`; `busy` of
    their slots are taken, of which each has `slots`; the longest wait is so long by now."""

    num_workers: int
    slots: int
    busy: int
    longest_wait_s: float
    is_settled: bool = True


class Autoscaler:
    """How one model is to change. `now` is the monotonic clock in seconds."""

    def __init__(self) -> None:
        self._too_large_since: float | None = None
        self._not_before = 0.0

    def failed(self, now: float) -> None:
        """The worker that was added did not come."""
        self._not_before = now + RETRY_AFTER_S

    def step(self, load: Load, scale: Scale, *, now: float) -> int:
        """1: add a worker, if there is room; -1: take one away; 0: leave it so."""
        fewer = load.num_workers - 1
        is_too_large = load.longest_wait_s == 0 and load.busy <= fewer * load.slots
        if not is_too_large or not load.is_settled or fewer < scale.low:
            self._too_large_since = None
        elif self._too_large_since is None:
            self._too_large_since = now
        elif now - self._too_large_since >= SHRINK_AFTER_S:
            self._too_large_since = None
            return -1
        may_grow = load.is_settled and load.num_workers < scale.high and now >= self._not_before
        return int(may_grow and load.longest_wait_s >= GROW_AFTER_S)
