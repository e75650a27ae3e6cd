"""Priorities, and the tiers that say which of them a principal may ask for, and its share. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from openclawctl.wire.errors import LimitExceeded


class Priority(enum.IntEnum):
    """Higher goes first."""

    BATCH = -1
    NORMAL = 0
    INTERACTIVE = 1


DEFAULT_TIER_NAME: Final = "default"


@dataclass(frozen=True, slots=True)
class Tier:
    """What the principals of one tier get. `weight` is what all of them together get of a model,
    in proportion to the weights of the other tiers that want it at the same priority; `priority` is
    that of requests that do not say; none may have more than `max_priority`."""

    name: str = DEFAULT_TIER_NAME
    weight: int = 1
    priority: Priority = Priority.NORMAL
    max_priority: Priority = Priority.INTERACTIVE

    def priority_of(self, asked: Priority | None) -> Priority:
        """The priority of a request. Raises `LimitExceeded` when it asks for more than it may."""
        if asked is None:
            return self.priority
        if asked > self.max_priority:
            asked_name, allowed = asked.name.lower(), self.max_priority.name.lower()
            raise LimitExceeded(
                f"priority {asked_name} was asked for; tiers.{self.name}.max_priority is {allowed}",
                hint=f"ask with priority {allowed} or lower, or leave it out",
            )
        return asked


DEFAULT_TIER: Final = Tier()
