"""What a model is made of, and the states that it and its workers can be in."""

from __future__ import annotations

import contextlib
import enum
import math
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from openclawd.fleet.gpus import GpuWish

if TYPE_CHECKING:
    from openclawd.worker.messages import Load

Files = tuple[tuple[int, int, int] | None, ...]
"""What tells one state of a model's files from another."""


class ModelState(enum.Enum):
    """Of a worker, and of a model: then that of the worker which is furthest."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    BACKOFF = "backoff"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Scale:
    """How many workers a model has. With `high` over `low` it is by how long requests wait."""

    low: int = 1
    high: int = 1


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a model is made of. `load.path` may name a file that is not there (yet).

    `keep_alive_s` may be infinite; `num_cores` None leaves a worker the CPUs that nobody has to
    himself; `cpus` are those of the model's own, if its configuration names any. Where memory is
    short it has fewer sequences, down to `min_parallel`, and shorter ones, down to `min_context`;
    None for what stays as it is.
    """

    load: Load
    scale: Scale = field(default_factory=Scale)
    backend: str = "llama"
    preload: bool = False
    required: bool = False
    keep_alive_s: float = math.inf
    is_pinned: bool = False
    min_residency_s: float = 0.0
    min_parallel: int | None = None
    min_context: int | None = None
    gpu: GpuWish = field(default_factory=GpuWish)
    num_cores: int | None = None
    cpus: frozenset[int] | None = None
    step_timeout_s: float = 120.0

    @property
    def name(self) -> str:
        return self.load.name

    @property
    def is_kept_warm(self) -> bool:
        """Does it stay loaded though nobody uses it?"""
        return math.isinf(self.keep_alive_s)

    def is_same_worker(self, other: ModelSpec) -> bool:
        """Is a worker of the one as good as one of the other?"""
        return _of_worker(self) == _of_worker(other)

    def load_of(self, index: int) -> Load:
        """What worker number `index` is to load: each keeps its prefixes in a folder of its own.
        A model's name has no `+`."""
        if index == 0 or not self.load.prefix_folder:
            return self.load
        return replace(self.load, prefix_folder=f"{self.load.prefix_folder}+{index}")

    def files(self) -> Files:
        """How its files are now. Looks at the disk, and reads nothing."""
        adapters = [adapter["path"] for adapter in self.load.adapters.values()]
        return tuple(map(_signature, [self.load.path, self.load.draft_path, *adapters]))


def _of_worker(spec: ModelSpec) -> tuple[object, ...]:
    return spec.load, spec.backend, spec.gpu, spec.num_cores, spec.cpus


def _signature(path: str) -> tuple[int, int, int] | None:
    """None while the file is not there."""
    with contextlib.suppress(OSError):
        status = os.stat(path)
        return status.st_ino, status.st_size, status.st_mtime_ns
    return None
