"""Sampling in numpy: what may be drawn and how likely it is, against llama.cpp's own samplers."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openclawd.backends import llama_sampler
from openclawd.backends.base import NotNumbers
from openclawd.backends.numpy_sampler import NumpySampler
from openclawd.engine.batch import Opening
from openclawd.engine.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

VOCAB_SIZE = 1500
HISTORY = (5, 6, 7, 8, 5, 6, 7, 9, 5, 6)

shares = st.sampled_from([0.1, 0.5, 0.9, 1.0])
params_of_all_kinds = st.builds(
    SamplingParams,
    seed=st.integers(0, 1000),
    top_k=st.sampled_from([0, 1, 5, 40]),
    typical_p=shares,
    top_p=shares,
    min_p=st.sampled_from([0.0, 0.02, 0.3]),
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    repeat_penalty=st.sampled_from([1.0, 1.4]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    presence_penalty=st.sampled_from([0.0, 0.7]),
    logit_bias=st.sampled_from([(), ((3, 4.0), (7, -2.0))]),
)


def logits_of(seed: int) -> np.ndarray:
    """Few likely tokens and many unlikely ones, as a language model has them."""
    random = np.random.default_rng(seed)
    ranks = random.permutation(VOCAB_SIZE) + 1
    noise = random.normal(0, 0.3, VOCAB_SIZE)
    return (-1.6 * np.log(ranks) + noise).astype(np.float32)


def sampler(params: SamplingParams, tokens: Sequence[int] = HISTORY, **values: Any) -> NumpySampler:
    defaults: dict[str, Any] = {
        "end_tokens": (2,),
        "suppressed_tokens": (),
        "breakers": frozenset(),
    }
    opening = Opening(0, tuple(tokens), len(tokens), params, values.pop("mu", None))
    return NumpySampler(opening, params, **{**defaults, **values})


def by_llama_cpp(params: SamplingParams, logits: np.ndarray) -> dict[int, float]:
    """The tokens that llama.cpp's filters leave, and their probabilities."""
    array_type = llama_cpp.llama_token_data * VOCAB_SIZE
    data = array_type(*((token, logit, 0.0) for token, logit in enumerate(logits.tolist())))
    array = llama_cpp.llama_token_data_array(data=data, size=VOCAB_SIZE, selected=-1, sorted=False)
    filters = llama_sampler._filters(params, HISTORY, VOCAB_SIZE, dry=None)
    for each in [*filters, llama_cpp.llama_sampler_init_dist(1)]:
        llama_cpp.llama_sampler_apply(each, ctypes.byref(array))
        llama_cpp.llama_sampler_free(each)
    return {array.data[index].id: array.data[index].p for index in range(array.size)}


@settings(max_examples=40, deadline=None)  # the first one loads llama.cpp
@given(params_of_all_kinds, st.integers(0, 50))
def test_what_may_be_drawn_is_what_llama_cpp_says(params: SamplingParams, seed: int) -> None:
    logits = logits_of(seed)
    theirs = by_llama_cpp(params, logits)
    tokens, chances = sampler(params).chances(logits, position=10)
    ours = dict(zip(tokens.tolist(), chances.tolist(), strict=True))
    differ = ours.keys() ^ theirs.keys()
    assert len(differ) <= 1, (params, differ)  # a sum of 32-bit floats may end a token sooner
    for token in ours.keys() & theirs.keys():
        assert math.isclose(ours[token], theirs[token], rel_tol=0.05 if differ else 1e-3)


def test_draws_are_as_frequent_as_they_should_be_and_depend_on_seed_and_position() -> None:
    params = SamplingParams(seed=4, temperature=1.0, top_k=4, top_p=1.0)
    logits, own = logits_of(1), sampler(params)
    tokens, chances = own.chances(logits, position=0)
    drawn = [own.sample(logits, position=position).token for position in range(4000)]
    for token, chance in zip(tokens.tolist(), chances.tolist(), strict=True):
        assert abs(drawn.count(token) / 4000 - chance) < 0.03
    again = sampler(params)
    assert [again.sample(logits, position=position).token for position in (7, 3)] == [
        drawn[7],
        drawn[3],
    ]


def test_dry_follows_the_longest_run_and_stops_at_breakers() -> None:
    params = SamplingParams(temperature=0, dry_multiplier=2.0, dry_base=3.0, dry_allowed_length=2)
    logits = np.zeros(VOCAB_SIZE, dtype=np.float32)
    changed = sampler(params)._changed(logits, None, 10)
    # 5 6 came twice before: followed by 7 each time, after 8 and at the beginning.
    assert {token: float(changed[token]) for token in np.flatnonzero(changed)} == {7: -2.0}
    bound = sampler(params, breakers=frozenset({5}))._changed(logits, None, 10)
    assert not bound.any()


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_keeps_its_surprise_and_goes_on_from_its_mu(version: int) -> None:
    params = SamplingParams(seed=3, temperature=1.0, mirostat=version, mirostat_tau=3.0, num_top=0)
    own, bits, mus = sampler(params), [], []
    for position in range(300):
        output = own.sample(logits_of(position), position=position)
        bits.append(-(output.logprob or 0) / math.log(2))
        mus.append(output.mu)
    assert abs(sum(bits[50:]) / 250 - 3.0) < 1.0
    resumed = sampler(params, mu=mus[99])
    assert resumed.sample(logits_of(100), position=100).mu == mus[100]


def test_tokens_that_may_not_come() -> None:
    logits = logits_of(0)
    best = int(logits.argmax())
    for params in (SamplingParams(temperature=0), SamplingParams(temperature=0.01)):
        assert sampler(params).sample(logits, position=10).token == best
        suppressing = sampler(params, suppressed_tokens={best})
        assert suppressing.sample(logits, position=10).token != best
    never = SamplingParams(temperature=0, min_tokens=2)
    ending = sampler(never, end_tokens=(best,))
    chosen = [ending.sample(logits, position=position).token for position in (10, 11, 12)]
    assert [token == best for token in chosen] == [False, False, True]


def test_garbage_is_not_sampled_from() -> None:
    for wrong in (np.nan, np.inf):
        logits = logits_of(0)
        logits[17] = wrong
        with pytest.raises(NotNumbers):
            sampler(SamplingParams()).sample(logits, position=0)
