"""The filters of sampling on numpy arrays: which tokens may be drawn, and how likely each is.

Owns what each filter keeps, with llama.cpp's meaning of its parameter (`llama-sampler.cpp`). Knows
no sequence and no randomness: who draws is `numpy_sampler.py`.

Tokens and logits come as two arrays of one length, the likeliest first.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from openclawd.backends.logprobs import likeliest

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy.typing as npt

    from openclawd.engine.sampling import SamplingParams

    Tokens = npt.NDArray[np.int64]
    Logits = npt.NDArray[np.float32]
    Probabilities = npt.NDArray[np.float64]

_NUM_TRIED: Final = 1024
"""Of so many tokens it is seen whether they are likely enough together, before all are sorted:
sorting 49,152 takes 4 ms, finding these 0.2."""

_MOST_DRY_PENALTY: Final = 1e30
"""Less than the largest 32-bit float, more than any logit."""


def probabilities(logits: Logits) -> Probabilities:
    """Of these tokens alone."""
    shares: Probabilities = np.exp((logits - logits.max()).astype(np.float64))
    shares /= shares.sum()
    return shares


def sorted_tokens(logits: Logits, params: SamplingParams) -> tuple[Tokens, Logits]:
    """Those that are possible, the likeliest first: as many of them as `top_k`, or as `top_p` asks
    for where nothing else looks at the others."""
    num_possible = int(np.count_nonzero(logits > -np.inf))
    count = min(params.top_k or num_possible, num_possible)
    if not params.top_k and params.top_p < 1 and params.typical_p >= 1:
        count = _enough(logits, params.top_p, count)
    tokens = likeliest(logits, count)
    return tokens, logits[tokens]


def _enough(logits: Logits, share: float, count: int) -> int:
    """A number of likeliest tokens that have this share of the probability together."""
    if count <= _NUM_TRIED:
        return count
    highest = logits.max()
    total = np.exp(logits - highest).sum(dtype=np.float64)
    tried = np.exp(logits[likeliest(logits, _NUM_TRIED)] - highest).sum(dtype=np.float64)
    return _NUM_TRIED if tried >= share * total else count


def typical(tokens: Tokens, logits: Logits, share: float) -> tuple[Tokens, Logits]:
    """Meister and others, "Locally Typical Sampling", 2022."""
    chances = probabilities(logits)
    surprise = -np.log(np.maximum(chances, np.finfo(np.float64).tiny))
    entropy = float((chances * surprise).sum())
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    num_kept = int(np.searchsorted(np.cumsum(chances[order]), share, side="right")) + 1
    kept = np.sort(order[:num_kept])
    return tokens[kept], logits[kept]


def num_top_p(logits: Logits, share: float, total: float | None = None) -> int:
    """How many of the likeliest tokens have this share of the probability together; one at least.
    `total` is the sum of exp(logit - highest) over all, where not all are here."""
    shares = np.exp((logits - logits[0]).astype(np.float64))
    sums = np.cumsum(shares) / (total or shares.sum())
    return min(int(np.searchsorted(sums, share)) + 1, len(logits))


def num_min_p(logits: Logits, share: float) -> int:
    """How many tokens have this share of the likeliest one's probability."""
    return int(np.count_nonzero(logits >= logits[0] + math.log(share)))


def num_above(logits: Logits, threshold: float) -> int:
    """How many of the likeliest tokens XTC leaves out: all that have this probability, but the
    least likely of them."""
    return max(int(np.count_nonzero(probabilities(logits) >= threshold)) - 1, 0)


def penalise(logits: Logits, params: SamplingParams, tokens: Sequence[int]) -> None:
    """Make tokens less likely that are among the last ones. Changes `logits`."""
    seen, counts = np.unique(np.array(tokens, dtype=np.int64), return_counts=True)
    found = logits[seen]
    found = np.where(found > 0, found / params.repeat_penalty, found * params.repeat_penalty)
    logits[seen] = found - counts * params.frequency_penalty - params.presence_penalty


def penalise_runs(
    logits: Logits, params: SamplingParams, tokens: Sequence[int], breakers: Collection[int]
) -> None:
    """DRY: make tokens less likely that would go on with a run of tokens seen before, as it went on
    then. Changes `logits`. Runs do not go over `breakers`."""
    backwards = list(reversed(tokens))
    most = next((n for n, token in enumerate(backwards) if token in breakers), len(backwards))
    penalties: dict[int, float] = {}
    for start, length in enumerate(_common_beginnings(backwards)):
        length = min(length, most)
        if start and length >= params.dry_allowed_length:
            followed_by = backwards[start - 1]
            excess = length - params.dry_allowed_length
            penalty = params.dry_multiplier * _power(params.dry_base, excess)
            penalties[followed_by] = max(penalties.get(followed_by, 0.0), penalty)
    for token, penalty in penalties.items():
        logits[token] -= penalty


def _power(base: float, exponent: int) -> float:
    try:
        return min(base**exponent, _MOST_DRY_PENALTY)
    except OverflowError:
        return _MOST_DRY_PENALTY


def _common_beginnings(tokens: Sequence[int]) -> list[int]:
    """For each position, how many tokens from there on are those of the beginning (the Z-algorithm
    of Gusfield, "Algorithms on Strings, Trees, and Sequences", 1997, 1.3)."""
    lengths = [0] * len(tokens)
    left = right = 0
    for start in range(1, len(tokens)):
        length = min(right - start, lengths[start - left]) if start < right else 0
        while start + length < len(tokens) and tokens[length] == tokens[start + length]:
            length += 1
        lengths[start] = length
        if start + length > right:
            left, right = start, start + length
    return lengths
