"""From the bytes of sampled tokens to text that may be shown.

Owns two promises: half a character is never shown, and no part of a stop string is ever shown, not
even its beginning while the rest could still come. Knows no tokens and no sequences.

Invariant: how the bytes are cut into pieces does not change the text, nor whether it stops.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class OutputText:
    """The text of one sequence. Bytes that are not UTF-8 become U+FFFD, as soon as that is sure."""

    __slots__ = ("_decoder", "_held", "_stop", "has_stopped")

    def __init__(self, stop: Iterable[str] = ()) -> None:
        self._stop = tuple(stop)
        assert all(self._stop), "an empty stop string would stop everything"
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.has_stopped = False

    def feed(self, piece: bytes, *, may_stop: bool = True) -> str:
        """The text that can be shown now that these bytes came. Empty once it has stopped.

        What comes while it may not stop is shown as it is, and is part of no stop string.
        """
        if self.has_stopped:
            return ""
        self._held += self._decoder.decode(piece)
        if not self._stop or not may_stop:
            return self._show(len(self._held))
        found = self._find_stop()
        if found is None:
            return self._show(len(self._held) - self._num_undecided_chars())
        self.has_stopped = True
        text, self._held = self._held[:found], ""
        return text

    def finish(self) -> str:
        """What was held back, now that nothing more comes. A cut character is dropped."""
        self._decoder.reset()
        return self._show(len(self._held))

    def _show(self, num_chars: int) -> str:
        text, self._held = self._held[:num_chars], self._held[num_chars:]
        return text

    def _find_stop(self) -> int | None:
        """Where the stop string begins that is complete first; of two, the longer one."""
        ends = [
            (start + len(stop), start)
            for stop in self._stop
            if (start := self._held.find(stop)) >= 0
        ]
        return min(ends)[1] if ends else None

    def _num_undecided_chars(self) -> int:
        """Length of the longest tail that a stop string may begin with."""
        longest = min(len(self._held), max(map(len, self._stop)) - 1)
        for length in range(longest, 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stop):
                return length
        return 0
