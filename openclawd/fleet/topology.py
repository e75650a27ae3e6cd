"""The CPUs of this machine as the kernel shows them in /sys: which share a core, which a NUMA node.

What cannot be read (a container may hide it) makes every CPU a core of its own on one node.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from openclawd.config.cpus import parse_cpus
from openclawd.fleet.placement import Cpu

if TYPE_CHECKING:
    from collections.abc import Collection

SYSTEM_DEVICES: Final = Path("/sys/devices/system")


def read_cpus(numbers: Collection[int], folder: Path = SYSTEM_DEVICES) -> list[Cpu]:
    """What is known of these CPUs, in order."""
    nodes = _nodes(folder)
    return [
        Cpu(number, core=_core(folder, number), node=nodes.get(number, 0))
        for number in sorted(numbers)
    ]


def _core(folder: Path, number: int) -> int:
    """The first of the CPUs that are threads of the same core."""
    siblings = _list_in(folder / "cpu" / f"cpu{number}" / "topology" / "thread_siblings_list")
    return min(siblings, default=number)


def _nodes(folder: Path) -> dict[int, int]:
    """The node of each CPU."""
    nodes = {}
    for path in (folder / "node").glob("node[0-9]*"):
        with contextlib.suppress(ValueError):
            node = int(path.name.removeprefix("node"))
            nodes.update(dict.fromkeys(_list_in(path / "cpulist"), node))
    return nodes


def _list_in(file: Path) -> frozenset[int]:
    """Empty for what is not there or not such a list: a node may have no CPUs."""
    with contextlib.suppress(OSError, ValueError):
        return parse_cpus(file.read_text().strip())
    return frozenset()
