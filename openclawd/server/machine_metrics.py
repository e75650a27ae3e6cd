"""The part of a scrape that is about the machine: memory, the CPU's quota, GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from openclawd.observe.exposition import Exposition
    from openclawd.observe.gpus import Gpu
    from openclawd.observe.pressure import Memory, Pressure


def write(text: Exposition, pressure: Pressure, gpus: Sequence[Gpu]) -> None:
    _machine(text, pressure.memory(), pressure.group.throttled_s())
    _gpus(text, gpus)


def _machine(text: Exposition, memory: Memory | None, throttled_s: float | None) -> None:
    text.gauge(
        "openclawd_memory_available_bytes",
        "Memory that can still be had, of the machine or of the service's own limit.",
        memory.available_bytes if memory else None,
    )
    text.gauge(
        "openclawd_memory_limit_bytes",
        "How much there is of it.",
        memory.limit_bytes if memory else None,
    )
    text.counter(
        "openclawd_cpu_throttled_seconds_total",
        "How long a CPU quota held the service's processes back.",
        throttled_s,
    )


def _gpus(text: Exposition, gpus: Sequence[Gpu]) -> None:
    def show(name: str, help_text: str, of: Callable[[Gpu], float | None]) -> None:
        values = (((gpu.label, gpu.name), of(gpu)) for gpu in gpus)
        samples = [(labels, value) for labels, value in values if value is not None]
        text.family(f"openclawd_gpu_{name}", "gauge", help_text, ("gpu", "name"), samples)

    show("memory_used_bytes", "GPU memory in use, by anybody.", lambda g: g.used_bytes)
    show("memory_total_bytes", "GPU memory there is.", lambda g: g.memory_bytes)
    show("utilization_ratio", "The share of the time it computed.", lambda g: g.busy)
