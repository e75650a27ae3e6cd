"""How the next token is chosen: the sampling parameters of requests and configuration.

Owns their names, types and ranges. Defaults are the model's and the daemon's.

Invariant: a parameter that is left out is `None`, so that defaults can apply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.fields import present
from openclawctl.wire.tokens import MAX_TOKEN_ID, MAX_TOP_LOGPROBS

if TYPE_CHECKING:
    from openclawctl.wire.fields import Fields

MAX_LOGIT_BIASES: Final = 1024
MAX_SEED: Final = 2**63 - 1

SAMPLING_RANGES: Final[dict[str, tuple[float, float]]] = {
    "temperature": (0, 100),
    "top_k": (0, MAX_TOKEN_ID),
    "typical_p": (0, 1),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "xtc_probability": (0, 1),
    "xtc_threshold": (0, 1),
    "mirostat": (0, 2),
    "mirostat_tau": (0, 100),
    "mirostat_eta": (0, 1),
    "repeat_penalty": (0.01, 10),
    "repeat_last_n": (0, 65_536),
    "frequency_penalty": (-10, 10),
    "presence_penalty": (-10, 10),
    "dry_multiplier": (0, 100),
    "dry_base": (1, 100),
    "dry_allowed_length": (1, 65_536),
    "dry_penalty_last_n": (0, 65_536),
    "seed": (0, MAX_SEED),
    "min_tokens": (0, MAX_TOKEN_ID),
    "top_logprobs": (0, MAX_TOP_LOGPROBS),
}
"""Lowest and highest value of each sampling parameter, for requests and configuration alike."""

SAMPLING_INTEGERS: Final = frozenset(
    {
        "top_k",
        "mirostat",
        "repeat_last_n",
        "dry_allowed_length",
        "dry_penalty_last_n",
        "seed",
        "min_tokens",
        "top_logprobs",
    }
)
"""Those of them that are whole numbers."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. `temperature` 0 always takes the likeliest one.

    The filters apply in the order logit bias, penalties, DRY, `top_k`, `typical_p`, `top_p`,
    `min_p`, XTC, temperature. `mirostat` 1 or 2 takes the place of those from `top_k` to XTC.
    Off are: `top_k` 0, `typical_p` 1, `top_p` 1, `min_p` 0, `xtc_probability` 0, `mirostat` 0,
    penalties 1 (repeat) and 0 (frequency, presence), `dry_multiplier` 0.
    With `ignore_eos` no token that ends the text is ever chosen, with `min_tokens` none of the
    first so many. `logprobs` asks how likely each token was, `top_logprobs` for so many of the
    likeliest in its place, too.
    """

    temperature: float | None = None
    top_k: int | None = None
    typical_p: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    seed: int | None = None
    logit_bias: dict[int, float] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @classmethod
    def decode(cls, source: Fields) -> Sampling:
        numbers: dict[str, Any] = {name: _number(source, name) for name in SAMPLING_RANGES}
        if numbers["top_logprobs"] and not source.boolean("logprobs", default=False):
            raise source.fail("'top_logprobs' needs 'logprobs': true")
        return cls(
            logit_bias=_decode_logit_bias(source) if source.has("logit_bias") else None,
            ignore_eos=source.boolean_or_none("ignore_eos"),
            logprobs=source.boolean_or_none("logprobs"),
            **numbers,
        )

    def encode(self) -> dict[str, Any]:
        params = present(self)
        if self.logit_bias is not None:  # pairs, because map keys on the wire are strings
            params["logit_bias"] = [[token, bias] for token, bias in self.logit_bias.items()]
        return params

    def over(self, defaults: Sampling) -> Sampling:
        """These values, and `defaults` where they are None."""
        return Sampling(**{**present(defaults), **present(self)})


def _number(source: Fields, name: str) -> float | None:
    low, high = SAMPLING_RANGES[name]
    if name in SAMPLING_INTEGERS:
        return source.integer_or_none(name, low=int(low), high=int(high))
    return source.number_or_none(name, low=low, high=high)


def _decode_logit_bias(source: Fields) -> dict[int, float]:
    biases: dict[int, float] = {}
    for pair in source.items("logit_bias", max_items=MAX_LOGIT_BIASES):
        if not isinstance(pair, list) or len(pair) != 2:
            raise source.fail("'logit_bias' must be a list of [token_id, bias] pairs")
        entry = source.nested(dict(zip(("token_id", "bias"), pair, strict=True)), "logit_bias")
        token_id = entry.integer("token_id", low=0, high=MAX_TOKEN_ID)
        biases[token_id] = entry.number("bias", low=-1000, high=1000)
    return biases
