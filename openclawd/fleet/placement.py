"""Which CPU cores a worker gets. Pure but for the list of cores, which is read once by the caller.

Invariant: workers share a core only when there are more workers' cores than cores.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator


class CoreAllocator:
    """Hands out the least used cores first."""

    def __init__(self, cores: Collection[int]) -> None:
        self._num_users = dict.fromkeys(sorted(cores), 0)

    @contextlib.contextmanager
    def lend(self, num_cores: int | None) -> Iterator[frozenset[int]]:
        """Cores for one worker, until the block ends; none named means it may use them all."""
        wanted = 0 if num_cores is None else min(num_cores, len(self._num_users))
        cores = sorted(self._num_users, key=lambda core: (self._num_users[core], core))[:wanted]
        for core in cores:
            self._num_users[core] += 1
        try:
            yield frozenset(cores)
        finally:
            for core in cores:
                self._num_users[core] -= 1
