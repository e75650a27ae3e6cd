"""The tiers: what priority their principals get, and what share of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator, StringConstraints

from openclawd.config import values
from openclawd.config.keys import Section, count, key

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_TIER_NAME: Final = "default"
MAX_WEIGHT: Final = 1000

PriorityText = Literal["batch", "normal", "interactive"]
_PRIORITIES: Final = ("batch", "normal", "interactive")  # the lowest first
_ALLOWED: Final = "batch, normal or interactive"
TIER_NAME_TEXT: Final = "letters, digits and . _ -, beginning with a letter or digit"

TierName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]


class TierConfig(Section):
    """What the principals of one tier get."""

    priority: PriorityText = key(
        "normal",
        meaning="The priority of requests that do not say; at most `max_priority`.",
        allowed=_ALLOWED,
    )
    max_priority: PriorityText = key(
        "interactive", meaning="The highest priority that they may ask for.", allowed=_ALLOWED
    )
    weight: int = count(
        1,
        low=1,
        high=MAX_WEIGHT,
        meaning="What all of the tier together get of a model, in proportion to the weights of the"
        " other tiers that want it at the same priority.",
    )

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Keys that do not fit each other, and why."""
        if _PRIORITIES.index(self.priority) > _PRIORITIES.index(self.max_priority):
            yield "priority", f"found {self.priority}, above max_priority, {self.max_priority}"


def _with_default(tiers: dict[str, TierConfig]) -> dict[str, TierConfig]:
    """There is always one for those who are given none."""
    return {DEFAULT_TIER_NAME: TierConfig(), **tiers}


Tiers = Annotated[
    dict[TierName, TierConfig],
    BeforeValidator(values.empty_if_nil),
    AfterValidator(_with_default),
]
