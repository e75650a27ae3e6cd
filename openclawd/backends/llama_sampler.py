"""Choosing tokens with llama.cpp's samplers, one chain per sequence.

Owns the order of the filters: no end, logit bias, penalties, top-k, top-p, min-p, temperature,
draw. Knows nothing of batches.

Invariant: the draw is seeded anew for every token from (seed, position), so a chain rebuilt from
the same tokens goes on exactly as the first one would have.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import llama_cpp

from openclawd.engine.sampling import SamplingParams, seed_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from openclawd.backends.llama_vocab import LlamaVocab
    from openclawd.engine.batch import Opening

_MIN_KEEP: Final = 1
_RANDOM_SEED: Final = llama_cpp.LLAMA_DEFAULT_SEED
"""llama.cpp takes this one seed to mean "draw a seed from the system"."""


class Sampler:
    """Chooses the tokens of the sequence that `opening` brought, by its `params`."""

    def __init__(self, opening: Opening, params: SamplingParams, vocab: LlamaVocab) -> None:
        self._params = params
        self._num_prompt_tokens = opening.num_prompt_tokens
        num_completion_tokens = len(opening.tokens) - opening.num_prompt_tokens
        self._forbids_end = params.forbids_end(num_completion_tokens)
        options = llama_cpp.llama_sampler_chain_default_params()
        options.no_perf = True
        self._chain = llama_cpp.llama_sampler_chain_init(options)
        if self._forbids_end:
            llama_cpp.llama_sampler_chain_add(self._chain, _no_end(vocab))
        for sampler in _filters(params, opening.tokens, vocab.size):
            llama_cpp.llama_sampler_chain_add(self._chain, sampler)
        self._num_filters = llama_cpp.llama_sampler_chain_n(self._chain)
        if params.is_greedy:
            llama_cpp.llama_sampler_chain_add(self._chain, llama_cpp.llama_sampler_init_greedy())

    def sample(self, context: Any, output: int, *, position: int) -> int:
        """The token that stands at `position`, from the logits of output `output`."""
        if self._forbids_end and not self._params.forbids_end(position - self._num_prompt_tokens):
            self._allow_end()
        if not self._params.is_greedy:
            self._reseed(position)
        token: int = llama_cpp.llama_sampler_sample(self._chain, context, output)
        return token

    def close(self) -> None:
        llama_cpp.llama_sampler_free(self._chain)  # frees the samplers in it, too

    def _allow_end(self) -> None:
        llama_cpp.llama_sampler_free(llama_cpp.llama_sampler_chain_remove(self._chain, 0))
        self._num_filters -= 1
        self._forbids_end = False

    def _reseed(self, position: int) -> None:
        drawer = llama_cpp.llama_sampler_chain_remove(self._chain, self._num_filters)
        if drawer:
            llama_cpp.llama_sampler_free(drawer)
        seed = seed_at(self._params.seed, position)
        drawer = llama_cpp.llama_sampler_init_dist(seed if seed != _RANDOM_SEED else 0)
        llama_cpp.llama_sampler_chain_add(self._chain, drawer)


def _filters(params: SamplingParams, tokens: Sequence[int], vocab_size: int) -> list[Any]:
    """The samplers before the draw. Those that are off are left out: each costs a pass."""
    filters = []
    if params.logit_bias:
        filters.append(_logit_bias(params.logit_bias, vocab_size))
    if params.has_penalties:
        filters.append(_penalties(params, tokens, vocab_size))
    if params.is_greedy:
        return filters
    if params.top_k > 0:
        filters.append(llama_cpp.llama_sampler_init_top_k(params.top_k))
    if params.top_p < 1:
        filters.append(llama_cpp.llama_sampler_init_top_p(params.top_p, _MIN_KEEP))
    if params.min_p > 0:
        filters.append(llama_cpp.llama_sampler_init_min_p(params.min_p, _MIN_KEEP))
    if params.temperature != 1:
        filters.append(llama_cpp.llama_sampler_init_temp(params.temperature))
    return filters


def _no_end(vocab: LlamaVocab) -> Any:
    return _logit_bias(((token, -math.inf) for token in vocab.end_tokens), vocab.size)


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
    for token in tokens[-params.repeat_last_n :]:
        llama_cpp.llama_sampler_accept(sampler, token)
    return sampler
