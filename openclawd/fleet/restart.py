"""When a model's worker is started again after it ended. Pure: events and `now` in, decisions out.

Rules (design, "Failure rules"): a load that failed for memory or driver reasons backs off 10 s
doubling to 5 minutes; a crash restarts at once the first time, then backs off from half a second
doubling to 30 s; `MAX_CRASHES` crashes within `CRASH_WINDOW_S` give up until somebody says `load`.
A worker that got something done ends the count: whatever killed it, restarting is of use.
"""

from __future__ import annotations

from typing import Final

LOAD_BACKOFF_S: Final = 10.0
LOAD_BACKOFF_MAX_S: Final = 300.0
CRASH_BACKOFF_S: Final = 0.5
CRASH_BACKOFF_MAX_S: Final = 30.0
MAX_CRASHES: Final = 8
CRASH_WINDOW_S: Final = 600.0


class RestartPolicy:
    """The memory of one model's failures. `now` is the monotonic clock in seconds."""

    def __init__(self) -> None:
        self._failed_loads = 0
        self._crash_times: list[float] = []

    @property
    def num_recent_crashes(self) -> int:
        return len(self._crash_times)

    def loaded(self) -> None:
        """The model loaded: the next load failure starts its backoff afresh."""
        self._failed_loads = 0

    def got_something_done(self) -> None:
        """A worker that is about to be counted as crashed had delivered something."""
        self._crash_times.clear()

    def forget(self) -> None:
        """Somebody said `load`, or the file changed: start afresh."""
        self._failed_loads = 0
        self._crash_times.clear()

    def delay_after_failed_load_s(self) -> float:
        """Seconds to wait after a load that failed for now."""
        delay = min(LOAD_BACKOFF_S * 2.0**self._failed_loads, LOAD_BACKOFF_MAX_S)
        self._failed_loads += 1
        return delay

    def delay_after_crash_s(self, now: float) -> float | None:
        """Seconds to wait after a crash; None to give up."""
        self._crash_times = [t for t in self._crash_times if now - t < CRASH_WINDOW_S]
        self._crash_times.append(now)
        num_crashes = len(self._crash_times)
        if num_crashes >= MAX_CRASHES:
            return None
        if num_crashes == 1:
            return 0.0
        return min(CRASH_BACKOFF_S * 2.0 ** (num_crashes - 2), CRASH_BACKOFF_MAX_S)
