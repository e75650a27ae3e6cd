"""Choosing tokens from logits in numpy, for backends whose library has no samplers.

Owns the order of the filters, which is llama.cpp's and that of `llama_sampler.py`: grammar, tokens
that may not come, logit bias, penalties, DRY, top-k, typical-p, top-p, min-p, XTC, temperature,
draw; with mirostat, it takes the place of those from top-k on, but for the temperature.

Invariant: a draw is a function of (seed, position) and of the tokens that may come with their
probabilities, so a sampler that is made again from the same tokens (and mirostat's `mu`) goes on as
the first one would have. The draws are not those that llama.cpp makes of the same seed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from openclawd.backends import token_filters
from openclawd.backends.base import NotNumbers
from openclawd.backends.logprobs import likeliest, logprobs
from openclawd.engine.batch import TokenOutput
from openclawd.engine.sampling import seed_at, seed_of

if TYPE_CHECKING:
    from collections.abc import Collection

    import numpy.typing as npt

    from openclawd.backends.constraint import Constraint
    from openclawd.backends.token_filters import Logits, Tokens
    from openclawd.engine.batch import Opening
    from openclawd.engine.sampling import SamplingParams

_XTC_INDEX: Final = -1
"""No sequence's index: XTC's chances have nothing to do with the draw of any."""

_MIROSTAT_1_TOKENS: Final = 100
"""Of so many likeliest tokens mirostat 1 estimates the distribution (common/sampling.cpp)."""

_LOWEST_PROBABILITY: Final = 1e-45
_BITS: Final = 2.0**32


class NumpySampler:
    """Chooses the tokens of the sequence that `opening` brought, by its `params`; with a
    `constraint`, among those that it allows.

    `end_tokens` and `suppressed_tokens` are the model's, `breakers` the tokens in which a run of
    DRY's ends.
    """

    def __init__(
        self,
        opening: Opening,
        params: SamplingParams,
        *,
        end_tokens: Collection[int],
        suppressed_tokens: Collection[int],
        breakers: Collection[int],
        constraint: Constraint | None = None,
    ) -> None:
        self._params = params
        self._constraint = constraint
        self._num_prompt_tokens = opening.num_prompt_tokens
        self._ends = end_tokens
        self._suppressed_tokens = suppressed_tokens
        self._breakers = breakers
        self._num_looked_back = max(
            params.repeat_last_n if params.has_penalties else 0,
            params.dry_penalty_last_n if params.has_dry else 0,
        )
        self._tokens = (
            list(opening.tokens[-self._num_looked_back :]) if self._num_looked_back else []
        )
        mu = 2 * params.mirostat_tau if opening.mu is None else opening.mu
        self._mu = mu if params.mirostat and not params.is_greedy else None

    @property
    def is_plain(self) -> bool:
        """Does it take the token with the highest logit that may come, and tell nothing of it?"""
        params = self._params
        is_changed = params.logit_bias or self._num_looked_back or self._constraint is not None
        return params.is_greedy and params.num_top is None and not is_changed

    def may_come(self, token: int, *, position: int) -> bool:
        """As far as the model's files and `min_tokens` say."""
        forbids_end = self._params.forbids_end(position - self._num_prompt_tokens)
        return not (token in self._suppressed_tokens or (forbids_end and token in self._ends))

    def sample(self, logits: npt.NDArray[np.float32], *, position: int) -> TokenOutput:
        """The token that stands at `position`. Does not modify `logits`. Raises `GrammarFailed` and
        `NotNumbers`."""
        if not math.isfinite(logits.max()):
            raise NotNumbers
        token = self._choose(logits, position)
        if self._num_looked_back:
            self._tokens = [*self._tokens, token][-self._num_looked_back :]
        if self._params.num_top is None:
            return TokenOutput(token, mu=self._mu)
        logprob, top = logprobs(logits, token, self._params.num_top)
        return TokenOutput(token, logprob, top, self._mu)

    def chances(
        self, logits: npt.NDArray[np.float32], *, position: int
    ) -> tuple[Tokens, npt.NDArray[np.float64]]:
        """The tokens that may be drawn at `position`, without a grammar, and how likely each is.
        Not for greedy sampling or mirostat."""
        return self._chances(self._changed(logits, None, position), position)

    def _choose(self, logits: npt.NDArray[np.float32], position: int) -> int:
        allowed = None
        if self._constraint is not None:
            allowed = self._constraint.allowed()
            if allowed is None:
                return self._constraint.end_token
        changed = self._changed(logits, allowed, position)
        is_greedy = self._params.is_greedy
        token = int(changed.argmax()) if is_greedy else self._draw(changed, position)
        if self._constraint is not None:
            self._constraint.accept(token)
        return token

    def _changed(
        self, logits: Logits, allowed: npt.NDArray[np.bool_] | None, position: int
    ) -> Logits:
        """What the filters in which nothing is random leave of the logits."""
        params = self._params
        changed = logits.copy() if allowed is None else np.where(allowed, logits, -np.inf)
        if params.forbids_end(position - self._num_prompt_tokens):
            changed[list(self._ends)] = -np.inf
        if self._suppressed_tokens:
            changed[list(self._suppressed_tokens)] = -np.inf
        for token, bias in params.logit_bias:
            changed[token] += bias
        if params.has_penalties:
            token_filters.penalise(changed, params, self._tokens[-params.repeat_last_n :])
        if params.has_dry:
            last = self._tokens[-params.dry_penalty_last_n :]
            token_filters.penalise_runs(changed, params, last, self._breakers)
        return changed

    # ---- drawing ----

    def _draw(self, logits: Logits, position: int) -> int:
        if self._mu is not None:
            return self._draw_mirostat(logits / np.float32(self._params.temperature), position)
        tokens, chances = self._chances(logits, position)
        return int(tokens[_drawn(tokens, chances, self._chance(position))])

    def _chances(self, logits: Logits, position: int) -> tuple[Tokens, npt.NDArray[np.float64]]:
        tokens, kept = self._filtered(logits, position)
        return tokens, token_filters.probabilities(kept / np.float32(self._params.temperature))

    def _filtered(self, logits: Logits, position: int) -> tuple[Tokens, Logits]:
        params = self._params
        if _filters_nothing(params):
            tokens = np.flatnonzero(logits > -np.inf)
            return tokens, logits[tokens]
        tokens, kept = token_filters.sorted_tokens(logits, params)
        if params.typical_p < 1:
            tokens, kept = token_filters.typical(tokens, kept, params.typical_p)
            order = np.lexsort((tokens, -kept))
            tokens, kept = tokens[order], kept[order]
        num_kept = len(kept)
        if params.top_p < 1:
            num_kept = token_filters.num_top_p(kept, params.top_p, self._total(logits, kept))
        if params.min_p > 0:
            num_kept = min(num_kept, token_filters.num_min_p(kept, params.min_p))
        tokens, kept = tokens[:num_kept], kept[:num_kept]
        if params.has_xtc and self._xtc_chance(position) <= params.xtc_probability:
            num_out = token_filters.num_above(kept, params.xtc_threshold)
            tokens, kept = tokens[num_out:], kept[num_out:]
        return tokens, kept

    def _total(self, logits: Logits, kept: Logits) -> float | None:
        """See `num_top_p`. Of tokens that a filter has chosen, their own sum counts."""
        if self._params.top_k or self._params.typical_p < 1:
            return None
        return float(np.exp(logits - kept[0]).sum(dtype=np.float64))

    def _draw_mirostat(self, logits: Logits, position: int) -> int:
        """Basu and others, "Mirostat", 2020; version 2 as llama.cpp has it."""
        assert self._mu is not None
        order = likeliest(logits, int(np.count_nonzero(logits > -np.inf)))
        chances = token_filters.probabilities(logits[order])
        if self._params.mirostat == 1:
            num_kept = _mirostat_1_tokens(chances, self._mu, vocab_size=logits.size)
        else:
            surprises = -np.log2(np.maximum(chances, _LOWEST_PROBABILITY))
            num_kept = int(np.searchsorted(surprises, self._mu, side="right"))
        kept = chances[: max(num_kept, 1)]
        kept = kept / kept.sum()
        index = _drawn(order[: len(kept)], kept, self._chance(position))
        surprise = -math.log2(max(float(kept[index]), _LOWEST_PROBABILITY))
        self._mu -= self._params.mirostat_eta * (surprise - self._params.mirostat_tau)
        return int(order[index])

    def _chance(self, position: int) -> float:
        return seed_at(self._params.seed, position) / _BITS

    def _xtc_chance(self, position: int) -> float:
        return seed_at(seed_of(self._params.seed, _XTC_INDEX), position) / _BITS


def _filters_nothing(params: SamplingParams) -> bool:
    narrows = params.top_k or params.typical_p < 1 or params.top_p < 1 or params.min_p > 0
    return not narrows and not params.has_xtc


def _drawn(tokens: Tokens, chances: npt.NDArray[np.float64], chance: float) -> int:
    """The index of the one that a number in `[0, 1)` falls to. In the order of the tokens' ids, so
    that two that are almost equally likely do not change places with their probabilities."""
    order = np.argsort(tokens)
    sums = np.cumsum(chances[order])
    index = int(np.searchsorted(sums, chance * sums[-1], side="right"))
    return int(order[min(index, len(order) - 1)])


def _mirostat_1_tokens(chances: npt.NDArray[np.float64], mu: float, *, vocab_size: int) -> int:
    """How many tokens version 1 keeps, by an estimate of the exponent of Zipf's law (llama.cpp,
    `llama_sampler_mirostat_apply`)."""
    num = min(_MIROSTAT_1_TOKENS, len(chances))
    ranks = np.arange(1, num)
    ratios = np.log((ranks + 1) / ranks)
    falls = np.log(chances[: num - 1] / np.maximum(chances[1:num], _LOWEST_PROBABILITY))
    exponent = float((ratios * falls).sum() / max((ratios * ratios).sum(), _LOWEST_PROBABILITY))
    epsilon = exponent - 1
    try:
        share = epsilon * 2**mu / (1 - vocab_size**-epsilon)
        return int(min(max(share ** (1 / exponent), 1.0), len(chances)))
    except (OverflowError, ZeroDivisionError, TypeError, ValueError):
        return len(chances)
