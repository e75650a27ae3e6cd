"""What `/metrics` and the warnings are told of GPUs, by whoever can read them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU, or one slice of it. `gpu` is its index or UUID as the configuration names it."""

    gpu: str
    name: str
    memory_used_bytes: int
    memory_total_bytes: int
    utilization: float | None = None
    """The share of the time in which it computed, in [0, 1]; None where nobody can say."""

    @property
    def memory_share(self) -> float:
        return self.memory_used_bytes / max(1, self.memory_total_bytes)
