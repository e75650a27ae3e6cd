"""A placer that has nothing to copy, for what is tested without a configuration."""

from pathlib import Path

from openclawd.fleet.fetcher import Fetcher
from openclawd.fleet.gpu_watch import GpuWatch
from openclawd.fleet.placement import CoreAllocator, Cpu
from openclawd.fleet.placer import Placer
from openclawd.fleet.staging import Stager


def placer(
    watch: GpuWatch | None = None, *, wait_s: float = 0.0, limit: int | None = None
) -> Placer:
    """On one CPU, and the GPUs of `watch`."""
    return Placer(
        CoreAllocator([Cpu(0, 0)]),
        watch or GpuWatch(),
        Stager(Fetcher(Path("/nowhere/fetch.sock"), []), None),
        gpu_memory_bytes=limit,
        gpu_wait_s=wait_s,
    )
