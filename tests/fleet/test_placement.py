"""CPUs are lent to one worker at a time, those of one node and whole cores first."""

from __future__ import annotations

import contextlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawd.fleet.placement import CoreAllocator, Cpu, NoPlace, choose_cpus


def plain(*numbers: int) -> list[Cpu]:
    """CPUs that are cores of their own on one node."""
    return [Cpu(number, core=number) for number in numbers]


def machine(num_nodes: int, cores_per_node: int, threads: int) -> list[Cpu]:
    """As Linux counts: every core's first thread, then every core's second."""
    num_cores = num_nodes * cores_per_node
    return [
        Cpu(number, core=number % num_cores, node=number % num_cores // cores_per_node)
        for number in range(num_cores * threads)
    ]


@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 2),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5)), max_size=12),
    st.sets(st.integers(0, 23)),
)
def test_no_cpu_is_lent_twice(nodes, cores, threads, asked, named):
    cpus = machine(nodes, cores, threads)
    allocator = CoreAllocator(cpus, named={"c": frozenset(named)} if named else {})
    users: Counter[int] = Counter()
    with contextlib.ExitStack() as stack:
        for model, wanted in asked:
            try:
                lent = stack.enter_context(allocator.lend(model, wanted))
            except NoPlace:
                continue
            users.update(lent)
            assert len(lent) <= wanted
            if model == "c" and named:
                assert lent <= named
            else:
                assert not lent & named
    assert not users or max(users.values()) == 1


def test_cpus_come_back() -> None:
    cpus = CoreAllocator(plain(3, 5))
    with cpus.lend("a", 1) as first:
        assert first == {3}
    with cpus.lend("b", 1) as again:
        assert again == {3}


def test_without_any_promise_everything_is_shared() -> None:
    with CoreAllocator(plain(0, 1)).lend("a", None) as cpus:
        assert cpus == frozenset()


def test_what_is_named_for_one_model_is_not_shared() -> None:
    allocator = CoreAllocator(plain(0, 1, 2), named={"a": frozenset({1})})
    with allocator.lend("b", None) as shared, allocator.lend("a", 1) as own:
        assert (shared, own) == ({0, 2}, {1})


def test_more_than_there_are_means_all() -> None:
    with CoreAllocator(plain(0, 1)).lend("a", 64) as cpus:
        assert cpus == {0, 1}


def test_too_few_are_free() -> None:
    allocator = CoreAllocator(plain(0, 1, 2))
    with allocator.lend("a", 2), pytest.raises(NoPlace) as caught, allocator.lend("b", 2):
        pass
    assert str(caught.value) == (
        "it is to have 2 of the CPUs 0-2 to itself, and 1 of them are free; the others are lent "
        "to a"
    )
    assert not caught.value.is_permanent


@pytest.mark.parametrize(
    ("named", "model", "words"),
    [
        ({"a": frozenset({1, 7})}, "a", "its `cpus` name 7, but the daemon may use 0-1 only"),
        ({"a": frozenset({0, 1})}, "b", "all 2 CPUs of the daemon are named in `cpus` of a"),
    ],
)
def test_what_no_waiting_helps(named: dict[str, frozenset[int]], model: str, words: str) -> None:
    allocator = CoreAllocator(plain(0, 1), named=named)
    with pytest.raises(NoPlace, match=words) as caught, allocator.lend(model, 1):
        pass
    assert caught.value.is_permanent


def numbers(cpus: list[Cpu]) -> list[int]:
    return [cpu.number for cpu in cpus]


def test_one_node_and_the_fullest_that_fits() -> None:
    cpus = machine(2, 4, 1)
    assert numbers(choose_cpus(cpus, 3, ())) == [0, 1, 2]
    assert numbers(choose_cpus(cpus, 3, (), near=1)) == [4, 5, 6]
    left = [cpu for cpu in cpus if cpu.number not in (4, 5)]
    assert numbers(choose_cpus(left, 2, {4, 5})) == [6, 7]
    assert numbers(choose_cpus(left, 3, {4, 5}, near=1)) == [0, 1, 2]
    assert numbers(choose_cpus(left, 5, {4, 5})) == [0, 1, 2, 3, 6]


def test_threads_of_one_core_stay_together() -> None:
    cpus = machine(1, 4, 2)
    assert numbers(choose_cpus(cpus, 2, ())) == [0, 4]
    assert numbers(choose_cpus(cpus[1:], 1, {0})) == [1]
    assert numbers(choose_cpus(cpus[1:], 7, {0})) == [1, 5, 2, 6, 3, 7, 4]
