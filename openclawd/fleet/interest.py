"""Who wants a model to be loaded, and since when: requests that wait for it, and wishes of which no
request knows (a preload, an administrator's `load`, another try after one that failed). Pure.
"""

from __future__ import annotations


class Interest:
    """`now` is a monotonic clock, in seconds."""

    def __init__(self) -> None:
        self.num_waiting = 0
        """Requests that wait."""
        self._waiting_since = 0.0
        self._wished_since: float | None = None

    @property
    def has_wish(self) -> bool:
        return self._wished_since is not None

    @property
    def is_polite(self) -> bool:
        """Is nobody to make way for it? For wishes nobody is."""
        return self.num_waiting == 0

    @property
    def since(self) -> float | None:
        """When it began; None while there is none."""
        times = [] if self._wished_since is None else [self._wished_since]
        times += [self._waiting_since] if self.num_waiting else []
        return min(times, default=None)

    def begin_to_wait(self, now: float) -> None:
        if self.num_waiting == 0:
            self._waiting_since = now
        self.num_waiting += 1

    def end_to_wait(self) -> None:
        self.num_waiting -= 1

    def wish(self, now: float) -> None:
        self._wished_since = now

    def forget_wish(self) -> None:
        """It was granted, or cannot be."""
        self._wished_since = None
