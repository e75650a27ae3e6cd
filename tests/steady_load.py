"""Clients that ask without a break, for tests of what must not be noticed by any of them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from harness import wait_until

from openclawctl import Client

if TYPE_CHECKING:
    from harness import Daemon


class Load:
    """Clients that stream without a break, and what went wrong."""

    def __init__(self, daemon: Daemon, *, num_clients: int, max_tokens: int = 24) -> None:
        self.num_done = 0
        self.failures: list[BaseException] = []
        self._daemon = daemon
        self._max_tokens = max_tokens
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(number,)) for number in range(num_clients)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(60)

    def wait_more(self, count: int) -> None:
        """Until so many requests more have ended."""
        goal = self.num_done + count
        wait_until(lambda: self.failures or self.num_done >= goal, what="requests")
        assert not self.failures, self.failures

    def _ask(self, number: int) -> None:
        try:
            with Client(socket_path=str(self._daemon.socket), retries=0) as client:
                while not self._is_over.is_set():
                    prompt = f"{number}. Tell me about the sea:"
                    with client.generate(
                        prompt, stream=True, max_tokens=self._max_tokens, ignore_eos=True, seed=1
                    ) as stream:
                        num_tokens = sum(len(delta.token_ids) for delta in stream)
                    assert num_tokens == stream.result.usage.completion_tokens == self._max_tokens
                    self.num_done += 1
        except BaseException as failure:
            self.failures.append(failure)
            raise
