"""Choosing tokens with llama.cpp's samplers, one chain per sequence.

Owns the order of the filters: grammar, tokens that may not come (ends, those the model's file
suppresses), logit bias, penalties, DRY, top-k, typical-p, top-p, min-p, XTC, temperature, draw, as
in llama.cpp's `common/sampling.cpp`; with mirostat, it takes the place of those from top-k on, but
for the temperature. Knows nothing of batches.

Invariant: whatever is random in a chain is made anew for every token, seeded from (seed, position),
so a chain rebuilt from the same tokens (and mirostat's `mu`) goes on exactly as the first one
would have.
"""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any, Final

import llama_cpp
import numpy as np

from openclawd.backends.base import NotNumbers
from openclawd.backends.logprobs import logprobs
from openclawd.engine.batch import TokenOutput
from openclawd.engine.sampling import SamplingParams, seed_at, seed_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from openclawd.backends.constraint import Constraint
    from openclawd.backends.llama_candidates import Candidates
    from openclawd.backends.llama_vocab import LlamaVocab
    from openclawd.engine.batch import Opening

_MIN_KEEP: Final = 1
_RANDOM_SEED: Final = llama_cpp.LLAMA_DEFAULT_SEED
"""llama.cpp takes this one seed to mean "draw a seed from the system"."""

_MIROSTAT_1_TOKENS: Final = 100
"""Of so many likeliest tokens mirostat 1 estimates the distribution (common/sampling.cpp)."""

_XTC_INDEX: Final = -1
"""No sequence's index: XTC's chances have nothing to do with the draw of any."""

_DRY_BREAKERS: Final = (b"\n", b":", b'"', b"*")
"""A run of tokens ends here (`dry_sequence_breakers`, common/common.h)."""

_NUM_DRY_KEPT: Final = 8

_LEAST_SHARE: Final = 1e-30
"""Of the likeliest token's probability. In 32-bit floats no larger share of a sum over a vocabulary
comes out as 0."""

_LOWEST_PROBABILITY: Final = 1e-45
"""Above 0, to which 32-bit floats may round one down."""


class DrySamplers:
    """Makes DRY samplers for one model. Setting one up looks through the whole vocabulary (12 ms
    for 49,152 tokens, measured 2026-11-23), so the last ones are kept and cloned."""

    def __init__(self, vocab: LlamaVocab) -> None:
        self._vocab = vocab
        self._kept: dict[tuple[float, float, int, int], Any] = {}
        self._breakers = (ctypes.c_char_p * len(_DRY_BREAKERS))(*_DRY_BREAKERS)

    def make(self, params: SamplingParams, tokens: Sequence[int]) -> Any:
        key = (
            params.dry_multiplier,
            params.dry_base,
            params.dry_allowed_length,
            params.dry_penalty_last_n,
        )
        if key not in self._kept:
            if len(self._kept) == _NUM_DRY_KEPT:
                llama_cpp.llama_sampler_free(self._kept.pop(next(iter(self._kept))))
            self._kept[key] = llama_cpp.llama_sampler_init_dry(
                self._vocab.pointer, *key, self._breakers, len(self._breakers)
            )
        sampler = llama_cpp.llama_sampler_clone(self._kept[key])
        _accept(sampler, tokens[-params.dry_penalty_last_n :])
        return sampler

    def close(self) -> None:
        for sampler in self._kept.values():
            llama_cpp.llama_sampler_free(sampler)
        self._kept.clear()


class Sampler:
    """Chooses the tokens of the sequence that `opening` brought, by its `params`; with a
    `constraint`, among those that it allows."""

    def __init__(
        self,
        opening: Opening,
        params: SamplingParams,
        *,
        vocab: LlamaVocab,
        dry: DrySamplers,
        candidates: Candidates,
        constraint: Constraint | None = None,
    ) -> None:
        self._params = params
        self._candidates = candidates
        self._constraint = constraint
        self._num_prompt_tokens = opening.num_prompt_tokens
        self._vocab_size = vocab.size
        num_completion_tokens = len(opening.tokens) - opening.num_prompt_tokens
        self._forbids_end = params.forbids_end(num_completion_tokens)
        options = llama_cpp.llama_sampler_chain_default_params()
        options.no_perf = True
        self._chain = llama_cpp.llama_sampler_chain_init(options)
        if self._forbids_end:
            self._add(_never(vocab.end_tokens, vocab.size))
        if vocab.suppressed_tokens:
            self._add(_never(vocab.suppressed_tokens, vocab.size))
        for sampler in _filters(params, opening.tokens, vocab.size, dry=dry):
            self._add(sampler)
        self._num_filters = llama_cpp.llama_sampler_chain_n(self._chain)
        self._mirostat: _Mirostat | None = None
        self._is_end = vocab.is_end
        self._is_plain = params.is_greedy and self._num_filters == int(self._forbids_end)
        if params.is_greedy:
            self._add(llama_cpp.llama_sampler_init_greedy())
        elif params.mirostat:
            self._mirostat = _Mirostat(params, opening.mu, vocab_size=vocab.size)

    def sample(self, context: Any, output: int, *, position: int) -> TokenOutput:
        """The token that stands at `position`, from the logits of output `output`. Raises
        `GrammarFailed` and `NotNumbers`."""
        if self._forbids_end and not self._params.forbids_end(position - self._num_prompt_tokens):
            self._allow_end()
        if not self._params.is_greedy:
            self._renew(position)
        token = self._choose(context, output)
        mu = None if self._mirostat is None else self._mirostat.mu
        if self._params.num_top is None:
            return TokenOutput(token, mu=mu)
        logprob, top = logprobs(self._logits(context, output), token, self._params.num_top)
        return TokenOutput(token, logprob, top, mu)

    def close(self) -> None:
        llama_cpp.llama_sampler_free(self._chain)  # frees the samplers in it, too

    def _choose(self, context: Any, output: int) -> int:
        logits = self._logits(context, output)
        # 6 us, where the chain takes 50 to 80 (49,152 tokens, measured 2026-11-23). Of numbers
        # among which one is none, the argmax is that one.
        likeliest = int(logits.argmax())
        if not math.isfinite(logits[likeliest]):
            raise NotNumbers
        is_forbidden = self._forbids_end and self._is_end(likeliest)
        if self._constraint is None and self._is_plain and not is_forbidden:
            return likeliest
        if self._constraint is None and self._mirostat is None:
            token: int = llama_cpp.llama_sampler_sample(self._chain, context, output)
            return token
        allowed = None
        if self._constraint is not None:
            allowed = self._constraint.allowed()
            if allowed is None:
                return self._constraint.end_token
        token, probability = self._candidates.choose(self._chain, logits, allowed=allowed)
        if self._constraint is not None:
            self._constraint.accept(token)
        if self._mirostat is not None:
            self._mirostat.take(probability)
        return token

    def _logits(self, context: Any, output: int) -> npt.NDArray[np.float32]:
        """As the model gave them; the filters work on a copy."""
        pointer = llama_cpp.llama_get_logits_ith(context, output)
        return np.ctypeslib.as_array(pointer, shape=(self._vocab_size,))

    def _add(self, sampler: Any) -> None:
        llama_cpp.llama_sampler_chain_add(self._chain, sampler)

    def _allow_end(self) -> None:
        llama_cpp.llama_sampler_free(llama_cpp.llama_sampler_chain_remove(self._chain, 0))
        self._num_filters -= 1
        self._forbids_end = False

    def _renew(self, position: int) -> None:
        """Replace what is random by the same with the seeds of this position."""
        while drawer := llama_cpp.llama_sampler_chain_remove(self._chain, self._num_filters):
            llama_cpp.llama_sampler_free(drawer)
        params, seed = self._params, _seed(self._params.seed, position)
        if self._mirostat is not None:
            self._add(self._mirostat.drawer(seed))
            return
        if params.has_xtc:
            xtc_seed = _seed(seed_of(params.seed, _XTC_INDEX), position)
            self._add(_xtc(params, xtc_seed))
            self._add(llama_cpp.llama_sampler_init_temp(params.temperature))
        self._add(llama_cpp.llama_sampler_init_dist(seed))


class _Mirostat:
    """Mirostat with its `mu` in the open, which llama.cpp's sampler keeps to itself: each token is
    drawn by a new one that starts with our `mu`, which is then moved on as that one moves its own
    (llama-sampler.cpp, `llama_sampler_mirostat_apply`)."""

    def __init__(self, params: SamplingParams, mu: float | None, *, vocab_size: int) -> None:
        self._params = params
        self._vocab_size = vocab_size
        self.mu = 2 * params.mirostat_tau if mu is None else mu

    def drawer(self, seed: int) -> Any:
        tau = self.mu / 2  # a new sampler starts with a mu of two tau
        eta = self._params.mirostat_eta
        if self._params.mirostat == 2:
            return llama_cpp.llama_sampler_init_mirostat_v2(seed, tau, eta)
        size = self._vocab_size
        return llama_cpp.llama_sampler_init_mirostat(size, seed, tau, eta, _MIROSTAT_1_TOKENS)

    def take(self, probability: float) -> None:
        """Move `mu` on, after a `drawer` has drawn a token of this probability."""
        surprise = -math.log2(max(probability, _LOWEST_PROBABILITY))
        error = surprise - self._params.mirostat_tau
        self.mu -= self._params.mirostat_eta * error


def _filters(
    params: SamplingParams, tokens: Sequence[int], vocab_size: int, *, dry: DrySamplers
) -> list[Any]:
    """The samplers in which nothing is random. Those that are off are left out: each costs a
    pass."""
    filters = []
    if params.logit_bias:
        filters.append(_logit_bias(params.logit_bias, vocab_size))
    if params.has_penalties:
        filters.append(_penalties(params, tokens, vocab_size))
    if params.has_dry:
        filters.append(dry.make(params, tokens))
    if params.is_greedy:
        return filters
    if not params.mirostat:
        filters += _truncations(params)
    if params.temperature != 1 and (params.mirostat or not params.has_xtc):
        filters.append(llama_cpp.llama_sampler_init_temp(params.temperature))
    if params.mirostat:
        filters.append(_possible())
    return filters


def _possible() -> Any:
    """Before samplers that take logarithms of probabilities: those of tokens that were made
    impossible are 0, and one of them makes not-a-number of what is said of all."""
    return llama_cpp.llama_sampler_init_min_p(_LEAST_SHARE, _MIN_KEEP)


def _truncations(params: SamplingParams) -> list[Any]:
    filters = []
    if params.top_k > 0:
        filters.append(llama_cpp.llama_sampler_init_top_k(params.top_k))
    if params.typical_p < 1:
        filters.append(_possible())
        filters.append(llama_cpp.llama_sampler_init_typical(params.typical_p, _MIN_KEEP))
    if params.top_p < 1:
        filters.append(llama_cpp.llama_sampler_init_top_p(params.top_p, _MIN_KEEP))
    if params.min_p > 0:
        filters.append(llama_cpp.llama_sampler_init_min_p(params.min_p, _MIN_KEEP))
    return filters


def _xtc(params: SamplingParams, seed: int) -> Any:
    return llama_cpp.llama_sampler_init_xtc(
        params.xtc_probability, params.xtc_threshold, _MIN_KEEP, seed
    )


def _never(tokens: Iterable[int], vocab_size: int) -> Any:
    return _logit_bias(((token, -math.inf) for token in tokens), vocab_size)


def _logit_bias(bias: Iterable[tuple[int, float]], vocab_size: int) -> Any:
    entries = [llama_cpp.llama_logit_bias(token, value) for token, value in bias]
    biases = (llama_cpp.llama_logit_bias * len(entries))(*entries)
    return llama_cpp.llama_sampler_init_logit_bias(vocab_size, len(biases), biases)


def _penalties(params: SamplingParams, tokens: Sequence[int], vocab_size: int) -> Any:
    sampler = llama_cpp.llama_sampler_init_penalties(
        vocab_size,
        params.repeat_last_n,
        params.repeat_penalty,
        params.frequency_penalty,
        params.presence_penalty,
    )
    _accept(sampler, tokens[-params.repeat_last_n :])
    return sampler


def _accept(sampler: Any, tokens: Iterable[int]) -> None:
    for token in tokens:
        llama_cpp.llama_sampler_accept(sampler, token)


def _seed(seed: int, position: int) -> int:
    bits = seed_at(seed, position)
    return bits if bits != _RANDOM_SEED else 0
