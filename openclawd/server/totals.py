"""Running sums since the daemon started, for `status`. Pure: `now` is an argument."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

RATE_WINDOW_S: Final = 10


@dataclass(slots=True)
class Totals:
    """`now` is the monotonic clock in seconds."""

    num_finished: int = 0
    num_failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    _per_second: deque[list[int]] = field(default_factory=lambda: deque(maxlen=RATE_WINDOW_S))

    def note_tokens(self, num_tokens: int, *, now: float) -> None:
        """Completion tokens that were just delivered."""
        self.completion_tokens += num_tokens
        second = int(now)
        if self._per_second and self._per_second[-1][0] == second:
            self._per_second[-1][1] += num_tokens
        else:
            self._per_second.append([second, num_tokens])

    def tokens_per_s(self, *, now: float) -> float:
        """Completion tokens per second over the last `RATE_WINDOW_S` whole seconds."""
        first = int(now) - RATE_WINDOW_S
        recent = sum(count for second, count in self._per_second if first <= second < int(now))
        return recent / RATE_WINDOW_S
