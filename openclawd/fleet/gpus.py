"""The GPUs of this machine, and what of them a worker gets. Pure: `gpu_watch.py` reads them.

Owns how a GPU is named in the configuration (index, UUID, MIG UUID) and the arithmetic of memory.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from openclawd.observe.gpus import Gpu

if TYPE_CHECKING:
    from collections.abc import Sequence

CONTEXT_BYTES: Final = 512 * 1024 * 1024
"""What is left alone on each GPU: the driver's own memory of a process that uses CUDA (300 to 500
MiB on current cards by NVIDIA's forums; not measured by us, see docs/gpu.md)."""


@dataclass(frozen=True, slots=True)
class GpuReport:
    """What was read: GPUs, and bytes of their memory by pid. Without any, `problem` says why."""

    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    problem: str = ""
    process_bytes: dict[int, int] | None = None

    def row(self) -> dict[str, Any]:
        """What `status` shows."""
        gpus = [asdict(gpu) for gpu in self.gpus]
        return {"gpus": gpus, "gpu_driver": self.driver, "gpu_problem": self.problem}

    def memory_of(self, pid: int | None) -> int | None:
        """GPU memory of a process; None where that is not known."""
        return (self.process_bytes or {}).get(pid) if pid is not None else None

    def find(self, devices: Sequence[str]) -> tuple[list[Gpu], list[str]]:
        """The GPUs that are meant (none named: every card), and the names of those not there."""
        if not devices:
            return [gpu for gpu in self.gpus if not gpu.is_slice], []
        found = {name: self._named(name) for name in devices}
        missing = [name for name, gpu in found.items() if gpu is None]
        return [gpu for gpu in found.values() if gpu is not None], missing

    def _named(self, name: str) -> Gpu | None:
        """By index, or by the beginning of a UUID, as CUDA_VISIBLE_DEVICES takes them."""
        if name.isdecimal():
            cards = (gpu for gpu in self.gpus if not gpu.is_slice)
            return next((gpu for gpu in cards if gpu.index == int(name)), None)
        fitting = [gpu for gpu in self.gpus if gpu.uuid.startswith(name)]
        return fitting[0] if len(fitting) == 1 else None


@dataclass(frozen=True, slots=True)
class GpuWish:
    """What the configuration says of a model's GPUs. `devices` as in it; `gpu_layers` None is
    automatic. `fails_without`: it does not load on the CPU instead."""

    devices: tuple[str, ...] = ()
    gpu_layers: int | None = None
    fails_without: bool = False

    @property
    def is_none(self) -> bool:
        return self.gpu_layers == 0

    @property
    def is_wanted(self) -> bool:
        """Does anything in it make sense with a GPU only? Else one is used if it is there."""
        return not self.is_none and (bool(self.devices) or self.gpu_layers is not None)


def decode_report(line: bytes) -> GpuReport:
    """A line of `openclawd.worker.gpus`. Raises `ValueError` for anything else."""
    data = json.loads(line)
    if not isinstance(data, dict):
        raise ValueError("not a map")
    try:
        gpus = tuple(Gpu(**gpu) for gpu in data.get("gpus", ()))
        pids = {int(pid): int(used) for pid, used in data.get("processes", {}).items()}
    except (TypeError, AttributeError):
        raise ValueError("not a report of GPUs") from None
    problem = str(data.get("problem", "")) or ("" if gpus else "the driver has no GPU")
    return GpuReport(gpus, str(data.get("driver", "")), problem, pids)


def budgets(gpus: Sequence[Gpu], limit_bytes: int | None) -> list[int]:
    """How many bytes of model and cache a worker may have on each GPU: what is free, or its share
    of a limit for all together by what is free on each, less `CONTEXT_BYTES`."""
    free = [gpu.free_bytes for gpu in gpus]
    every = sum(free)
    if limit_bytes is not None and every > limit_bytes:
        free = [limit_bytes * each // every for each in free]
    return [max(each - CONTEXT_BYTES, 0) for each in free]
