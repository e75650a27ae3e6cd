"""How many tokens a second a worker makes. Pure: counts and `now` in, a rate out."""

from __future__ import annotations

from collections import deque
from typing import Final

SPAN_S: Final = 5.0
_BUCKET_S: Final = 0.5


class Tempo:
    """The mean of the last `SPAN_S`. `note` is called for each step, so it does next to nothing."""

    def __init__(self) -> None:
        self._buckets: deque[tuple[float, int]] = deque()  # (its end, tokens)

    def note(self, num_tokens: int, now: float) -> None:
        if self._buckets and now < self._buckets[-1][0]:
            end, known = self._buckets[-1]
            self._buckets[-1] = (end, known + num_tokens)
            return
        self._forget(now)
        self._buckets.append((now + _BUCKET_S, num_tokens))

    def per_second(self, now: float) -> float:
        self._forget(now)
        return sum(count for _, count in self._buckets) / SPAN_S

    def _forget(self, now: float) -> None:
        while self._buckets and self._buckets[0][0] < now - SPAN_S:
            self._buckets.popleft()
