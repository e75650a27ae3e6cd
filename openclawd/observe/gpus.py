"""A GPU as it was read last: what placement, `/metrics` and the warnings know of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card, or a MIG slice of one (`is_slice`, then `index` is the card's). `busy` is a share of
    time; None is what the card does not say. `node` is the NUMA node it is attached to."""

    index: int
    uuid: str
    name: str
    memory_bytes: int
    used_bytes: int
    is_slice: bool = False
    node: int | None = None
    busy: float | None = None
    power_w: float | None = None
    celsius: float | None = None

    @property
    def label(self) -> str:
        """As the configuration names it: a card by its index, a slice by its UUID."""
        return self.uuid if self.is_slice else str(self.index)

    @property
    def memory_share(self) -> float:
        """How much of its memory is in use, in [0, 1]."""
        return self.used_bytes / max(1, self.memory_bytes)

    @property
    def free_bytes(self) -> int:
        return max(self.memory_bytes - self.used_bytes, 0)
