"""A backend whose steps take a fixed time: for measuring what is around a step.

Owns the waiting. Everything else is the backend inside it, which needs a model that is quicker than
a step; so it keeps the whole contract (`tests/backends/test_fixed_step.py`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from openclawd.backends.base import go_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from openclawd.backends.base import Backend, ForwardResult
    from openclawd.engine.batch import Batch


class FixedStep:
    """The `Backend` protocol, around `backend`. A step ends `step_s` after it began, or later if
    the model takes longer; the processor is free meanwhile, as beside a GPU."""

    def __init__(self, backend: Backend, *, step_s: float) -> None:
        self._backend = backend
        self._step_s = step_s
        self.began_ns = 0
        self.ended_ns = 0
        """When the last step began and ended, by the monotonic clock."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def forward(self, batch: Batch, between: Callable[[], bool] = go_on) -> ForwardResult:
        self.began_ns = time.monotonic_ns()
        result = self._backend.forward(batch, between)
        spent_s = (time.monotonic_ns() - self.began_ns) / 1e9
        time.sleep(max(0.0, self._step_s - spent_s))
        self.ended_ns = time.monotonic_ns()
        return result
