"""What /sys says of the CPUs, on machines of other shapes than this one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from openclawd.fleet.placement import Cpu
from openclawd.fleet.topology import read_cpus

if TYPE_CHECKING:
    from pathlib import Path


def write_machine(folder: Path) -> None:
    """Two nodes of one core with two threads each; a third node has memory only."""
    for number, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        topology = folder / "cpu" / f"cpu{number}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{siblings}\n")
    for node, cpus in enumerate(("0,2", "1,3", "")):
        (folder / "node" / f"node{node}").mkdir(parents=True)
        (folder / "node" / f"node{node}" / "cpulist").write_text(f"{cpus}\n")


def test_cores_and_nodes(tmp_path: Path) -> None:
    write_machine(tmp_path)
    assert read_cpus({0, 1, 3}, tmp_path) == [
        Cpu(0, core=0, node=0),
        Cpu(1, core=1, node=1),
        Cpu(3, core=1, node=1),
    ]


def test_a_machine_that_shows_nothing(tmp_path: Path) -> None:
    assert read_cpus({4, 2}, tmp_path) == [Cpu(2, core=2), Cpu(4, core=4)]


def test_this_machine() -> None:
    usable = os.sched_getaffinity(0)
    assert {cpu.number for cpu in read_cpus(usable)} == usable
