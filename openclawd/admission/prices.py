"""What a request costs: counts and times in, whole micro-units of money out. Pure, and exact.

Rates are integers: micro-units for a million tokens and for a second of computing. A cost is added
up in millionths of a micro-unit and rounded up once, at its end, so that something which is used is
never free, a reservation is never less than what comes of it, and the order of adding is no matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_MILLION: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """The rates of a model. `prompt`, `cached` and `completion` are micro-units for a million
    tokens, `second` is micro-units for a second in which a request is computed. A cached token is
    one of the prompt and is charged the rate of cached ones alone."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    second: int = 0

    def cost(
        self, prompt_tokens: int, cached_tokens: int, completion_tokens: int, compute_s: float = 0.0
    ) -> int:
        """Micro-units, rounded up. `compute_s` counts to the microsecond."""
        fresh_tokens = max(0, prompt_tokens - cached_tokens)
        prompt = fresh_tokens * self.prompt + cached_tokens * self.cached
        return self._whole(prompt, completion_tokens, compute_s)

    def worst_case(self, prompt_tokens: int, completion_tokens: int, compute_s: float = 0.0) -> int:
        """The most that a request can cost, as far as it is known: all of the prompt at the higher
        of its two rates, all of the completion. A price by time has no bound without `compute_s`,
        the longest it may take."""
        prompt = prompt_tokens * max(self.prompt, self.cached)
        return self._whole(prompt, completion_tokens, compute_s)

    @property
    def is_free(self) -> bool:
        return not (self.prompt or self.cached or self.completion or self.second)

    def _whole(self, prompt_millionths: int, completion_tokens: int, compute_s: float) -> int:
        millionths = (
            prompt_millionths
            + completion_tokens * self.completion
            + round(compute_s * _MILLION) * self.second
        )
        return -(-millionths // _MILLION)


FREE: Final = Price()


@dataclass(frozen=True, slots=True)
class Prices:
    """The prices of all models by name, in one currency. A model without one is free."""

    name: str = ""
    of_models: Mapping[str, Price] = field(default_factory=dict)

    @property
    def currency(self) -> str | None:
        """None when nothing costs anything."""
        return self.name if self.of_models else None

    def of(self, model: str) -> Price:
        return self.of_models.get(model, FREE)
