"""How a sequence's next token is chosen, in the engine's words.

Owns the parameters and what "off" means for each. The choosing itself happens in a backend, where
the logits are.

Invariant: together with a sequence's tokens these parameters decide the next token (with mirostat,
its `mu` does, too). Randomness is a function of `seed` and the token's position alone, so a
sequence that is computed again, here or in another process, goes on as it would have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_MASK_63: Final = 2**63 - 1
_MASK_64: Final = 2**64 - 1

_LOWEST_TEMPERATURE: Final = 1e-6
"""Below this the likeliest token always wins anyway. Logits are divided by the temperature in
32-bit floats: by 1e-38 they become infinite, and then any token may be drawn."""

_HIGHEST_XTC_THRESHOLD: Final = 0.5
"""No two tokens can both have more (llama.cpp's `llama_sampler_init_xtc`: off above it)."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """`temperature` 0, or next to it, takes the likeliest token. Filters apply in the order of the
    fields from `logit_bias` down to `temperature`; off are penalties 1 (repeat) and 0, `top_k` 0,
    `typical_p` 1, `top_p` 1, `min_p` 0. With `mirostat` 1 or 2 it takes the place of those from
    `top_k` to `xtc_threshold`, after the temperature.

    Tokens that end a text are impossible with `ignore_eos`, and among the first `min_tokens`, in
    which stop strings do not count either. `num_top` asks for logarithms of probability: of the
    sampled token and of so many likeliest ones. `grammar`, in llguidance's form, makes impossible
    what does not follow it; where it is complete the text ends, whatever the others say."""

    seed: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    top_k: int = 40
    typical_p: float = 1.0
    top_p: float = 0.95
    min_p: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    temperature: float = 0.8
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    ignore_eos: bool = False
    min_tokens: int = 0
    num_top: int | None = None
    grammar: str = ""

    @property
    def is_greedy(self) -> bool:
        return self.temperature < _LOWEST_TEMPERATURE

    def forbids_end(self, num_completion_tokens: int) -> bool:
        """Is every token that ends a text impossible after so many sampled ones?"""
        return self.ignore_eos or num_completion_tokens < self.min_tokens

    @property
    def has_penalties(self) -> bool:
        """Does the choice depend on earlier tokens by more than the model?"""
        off = (1.0, 0.0, 0.0)
        penalties = (self.repeat_penalty, self.frequency_penalty, self.presence_penalty)
        return self.repeat_last_n > 0 and penalties != off

    @property
    def has_dry(self) -> bool:
        """Are tokens made less likely that would go on with a run of tokens seen before?"""
        return self.dry_multiplier > 0 and self.dry_penalty_last_n > 0

    @property
    def has_xtc(self) -> bool:
        """May the likeliest tokens be left out by chance?"""
        return self.xtc_probability > 0 and self.xtc_threshold <= _HIGHEST_XTC_THRESHOLD


def seed_at(seed: int, position: int) -> int:
    """32 random bits for the token at a position, by SplitMix64 (Steele, Lea, Flood: "Fast
    Splittable Pseudorandom Number Generators", 2014): neighbouring seeds and positions give
    unrelated bits."""
    return _mixed(seed, position) >> 32


def seed_of(seed: int, index: int) -> int:
    """The seed of the sequence `index` of a request: the first has the request's own."""
    return _mixed(seed, index) & _MASK_63 if index else seed


def _mixed(seed: int, number: int) -> int:
    return _mix(_mix(seed & _MASK_64) ^ (number & _MASK_64))


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)
