"""How many workers a model has when that is to follow its load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from openclawd.config.keys import Section, count

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_WORKERS: Final = 64


class AutoscaleConfig(Section):
    """The fewest and the most workers of one model."""

    min: int | None = count(
        None,
        low=1,
        high=MAX_WORKERS,
        meaning="Workers that are there whenever the model is loaded.",
        default_text="none; goes with `max`",
    )
    max: int | None = count(
        None,
        low=1,
        high=MAX_WORKERS,
        meaning="Workers at most. One more is started when a request has waited for two seconds and"
        " there is memory for it, and the last one is stopped when one fewer would have done for"
        " two minutes.",
        default_text="none; goes with `min`",
    )

    def contradictions(self, workers: int) -> Iterator[str]:
        """What does not fit, here and beside `workers`."""
        if (self.min is None) != (self.max is None):
            yield "min and max need each other; set both or neither"
        elif self.min is not None and self.max is not None:
            if self.min > self.max:
                yield f"min is {self.min}, above max, {self.max}"
            if workers != 1:
                yield f"found beside workers: {workers}; remove one of them"
