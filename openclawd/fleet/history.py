"""What became of one model's workers since the daemon's start, for `/metrics`. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openclawd.fleet.ending import Cause


@dataclass(slots=True)
class WorkerHistory:
    """`load_s` is how long the last load took, from the start of the process to readiness; None
    before the first. `exits` counts workers by why they ended."""

    num_starts: int = 0
    num_loads: int = 0
    load_s: float | None = None
    exits: Counter[Cause] = field(default_factory=Counter)

    def started(self) -> None:
        self.num_starts += 1

    def loaded(self, load_s: float) -> None:
        self.num_loads += 1
        self.load_s = load_s

    def ended(self, cause: Cause) -> None:
        self.exits[cause] += 1
