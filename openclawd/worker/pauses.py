"""When what is computed aside will reach its next pause.

Every part of a prompt has the same operations, whatever its tokens, so the time to the next pause
is taken from the part before. An operation cannot be interrupted, and they are very different: of
256 tokens to 2,000 of SmolLM2 most take less than a millisecond, a layer's attention 27. Pure, and
without a clock.
"""

from __future__ import annotations

from typing import Final

_NUM_NEWEST: Final = 24
"""In so many pauses of a first part one of the longest operations is met: llama.cpp's span about
three layers (`_NODES_PER_PAUSE` of backends/llama_aside.py)."""


class Pauses:
    """Call `begin` with each part, `reached` and `left` at each pause. Times are seconds."""

    def __init__(self) -> None:
        self._before: list[float] = []
        self._now: list[float] = []
        self._left_s: float | None = None

    def begin(self) -> None:
        if self._now:
            self._before, self._now = self._now, []
        self._left_s = None

    def reached(self, now_s: float) -> float:
        """How long it will compute until the next pause."""
        if self._left_s is not None:  # before the first, cells may have been copied
            self._now.append(now_s - self._left_s)
        position = len(self._now)
        if position < len(self._before):
            return self._before[position]
        return max(self._now[-_NUM_NEWEST:], default=0.0)

    def left(self, now_s: float) -> None:
        self._left_s = now_s
