"""Cores are handed out so that workers share as few as possible."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from openclawd.fleet.placement import CoreAllocator


@given(st.integers(1, 8), st.lists(st.integers(1, 4), max_size=8))
def test_the_busiest_core_is_as_idle_as_it_can_be(num_cores: int, workers: list[int]) -> None:
    cores = CoreAllocator(range(num_cores))
    with contextlib.ExitStack() as stack:
        given_out = [stack.enter_context(cores.lend(wanted)) for wanted in workers]
        users = [sum(core in lent for lent in given_out) for core in range(num_cores)]
    assert max(users) - min(users) <= 1
    assert [len(lent) for lent in given_out] == [min(n, num_cores) for n in workers]


def test_cores_come_back() -> None:
    cores = CoreAllocator({3, 5})
    with cores.lend(1) as first:
        assert first == {3}
    with cores.lend(1) as again:
        assert again == {3}


def test_no_limit_means_every_core() -> None:
    with CoreAllocator({0, 1}).lend(None) as cores:
        assert cores == frozenset()
