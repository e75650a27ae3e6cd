"""Which CPUs a worker gets. Pure: what CPUs there are comes from `topology.py`.

A model has CPUs of its own if its configuration names them (`cpus`), or if every worker is promised
some (`cpu_cores_per_worker`). The others share what is promised to nobody by name.

Invariants: a CPU that was lent to a worker with CPUs of its own is lent to no other; CPUs named for
one model are lent to no other model, whether it is loaded or not.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openclawd.config.cpus import format_cpus

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Cpu:
    """One CPU as Linux counts them. `core` is the same for those that are threads of one core."""

    number: int
    core: int
    node: int = 0


class NoPlace(Exception):
    """A worker cannot have the CPUs or the GPU that it is to have. `str()` is a sentence with the
    numbers; `is_permanent`: until the configuration or the machine changes."""

    def __init__(self, story: str, *, is_permanent: bool) -> None:
        super().__init__(story)
        self.is_permanent = is_permanent


class CoreAllocator:
    """Lends CPUs to workers. `named` are those of models whose configuration names them."""

    def __init__(
        self, cpus: Collection[Cpu], *, named: Mapping[str, frozenset[int]] | None = None
    ) -> None:
        self._cpus = {cpu.number: cpu for cpu in cpus}
        self._named = dict(named or {})
        self._lent: dict[int, str] = {}
        """Whose each CPU is that is not free."""

    def name(self, named: Mapping[str, frozenset[int]]) -> None:
        """Other ones are named from now on. What is lent stays so."""
        self._named = dict(named)

    @contextlib.contextmanager
    def lend(
        self, model: str, num_cpus: int | None, *, near: int | None = None
    ) -> Iterator[frozenset[int]]:
        """CPUs for one worker of a model, until the block ends. None: those that are shared; an
        empty set then means every one of the daemon. `near` is the NUMA node to prefer.

        Raises `NoPlace`.
        """
        if num_cpus is None:
            yield self._shared()
            return
        numbers = self._choose(model, num_cpus, near)
        self._lent.update(dict.fromkeys(numbers, model))
        try:
            yield numbers
        finally:
            for number in numbers:
                del self._lent[number]

    def _shared(self) -> frozenset[int]:
        promised = frozenset[int]().union(*self._named.values())
        if not promised:
            return frozenset()
        left = self._cpus.keys() - promised
        if not left:
            raise NoPlace(
                f"all {len(self._cpus)} CPUs of the daemon are named in `cpus` of "
                f"{', '.join(sorted(self._named))}, so none is left for models without `cpus`",
                is_permanent=True,
            )
        return frozenset(left)

    def _choose(self, model: str, num_cpus: int, near: int | None) -> frozenset[int]:
        own = self._of_model(model)
        # More than there are means all of them: a configuration may be made for larger machines.
        wanted = min(num_cpus, len(own))
        free = [self._cpus[number] for number in sorted(own - self._lent.keys())]
        if wanted > len(free):
            users = sorted({self._lent[number] for number in own & self._lent.keys()})
            raise NoPlace(
                f"it is to have {wanted} of the CPUs {format_cpus(own)} to itself, and "
                f"{len(free)} of them are free; the others are lent to {', '.join(users)}",
                is_permanent=False,
            )
        taken = {self._cpus[number].core for number in self._lent}
        return frozenset(cpu.number for cpu in choose_cpus(free, wanted, taken, near=near))

    def _of_model(self, model: str) -> frozenset[int]:
        """Those that its workers are taken from."""
        if model not in self._named:
            return self._shared() or frozenset(self._cpus)
        own = self._named[model]
        if missing := own - self._cpus.keys():
            raise NoPlace(
                f"its `cpus` name {format_cpus(missing)}, but the daemon may use "
                f"{format_cpus(frozenset(self._cpus))} only",
                is_permanent=True,
            )
        return own


def choose_cpus(
    free: Sequence[Cpu], wanted: int, taken_cores: Collection[int], *, near: int | None = None
) -> list[Cpu]:
    """`wanted` of the free CPUs: from one NUMA node if one has so many, of these from `near` or
    else the one that is nearly full; whole cores before threads of a core that is in use."""
    nodes: dict[int, list[Cpu]] = {}
    for cpu in sorted(free, key=lambda cpu: (cpu.core in taken_cores, cpu.core, cpu.number)):
        nodes.setdefault(cpu.node, []).append(cpu)
    fitting = [node for node, cpus in nodes.items() if len(cpus) >= wanted]
    if fitting:
        best = min(fitting, key=lambda node: (node != near, len(nodes[node]), node))
        return nodes[best][:wanted]
    fullest_first = sorted(nodes.items(), key=lambda item: (-len(item[1]), item[0]))
    return [cpu for _, cpus in fullest_first for cpu in cpus][:wanted]
