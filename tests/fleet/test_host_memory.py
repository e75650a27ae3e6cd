"""What is read of the kernel's counters."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from openclawd.fleet.host_memory import (
    RESERVE,
    has_huge_pages,
    memory_budget,
    read_footprint,
)

if TYPE_CHECKING:
    from pathlib import Path

GIB = 2**30


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A machine with 10 GiB to be had, and a daemon in two control groups."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(f"MemAvailable:  {10 * GIB // 1024} kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/slice/unit\n")
    (tmp_path / "cgroup" / "slice" / "unit").mkdir(parents=True)
    return tmp_path


def _budget(host: Path, *pids: int) -> float:
    budget = memory_budget(pids, proc=host / "proc", cgroups=host / "cgroup")
    return budget / (1 - RESERVE) / GIB


def test_without_a_limit_it_is_what_the_machine_has(host: Path) -> None:
    assert _budget(host) == pytest.approx(10)


def test_what_the_workers_have_is_part_of_it(host: Path) -> None:
    (host / "proc" / "7").mkdir()
    (host / "proc" / "7" / "statm").write_text(f"9 {3 * GIB // 4096} {GIB // 4096} 0 0 0 0\n")
    assert _budget(host, 7, 8) == pytest.approx(12)


@pytest.mark.parametrize("folder", ["slice", "slice/unit"])
def test_a_control_group_around_it_counts(host: Path, folder: str) -> None:
    group = host / "cgroup" / folder
    (group / "memory.max").write_text(f"{4 * GIB}\n")
    (group / "memory.current").write_text(f"{3 * GIB}\n")
    (group / "memory.stat").write_text(f"anon {GIB}\ninactive_file {2 * GIB}\n")
    assert _budget(host) == pytest.approx(3)


def test_no_limit_and_strange_files_are_no_limit(host: Path) -> None:
    (host / "cgroup" / "slice" / "memory.max").write_text("max\n")
    (host / "cgroup" / "slice" / "memory.current").write_text("1\n")
    assert _budget(host) == pytest.approx(10)


def test_the_footprint_of_a_process() -> None:
    own = read_footprint(os.getpid())
    assert own is not None
    assert 0 < own.own_bytes < own.pss_bytes
    assert read_footprint(2**22 + 1) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("always [madvise] never\n", True),
        ("[always] madvise never\n", True),
        ("always madvise [never]\n", False),
        (None, False),
    ],
)
def test_huge_pages_are_to_be_had_unless_the_kernel_says_never(
    tmp_path: Path, text: str | None, expected: bool
) -> None:
    switch = tmp_path / "enabled"
    if text is not None:
        switch.write_text(text)
    assert has_huge_pages(switch) is expected
