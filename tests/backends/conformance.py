"""What every backend must do, as tests. A backend joins by a subclass with a `backend` fixture.

The model behind it needs at least 4 slots, 512 KV cells and a context of 256 tokens, and must be
able to generate; nothing here depends on what it says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openclawd.backends.base import Backend, NoFreeCells
from openclawd.engine.batch import (
    Batch,
    BatchKind,
    CacheOp,
    Chunk,
    CopyCells,
    DropCells,
    ForgetParked,
    Opening,
    Outputs,
    ParkSlot,
    RestoreCells,
    ResumeSlot,
    StowCells,
    TokenOutput,
)
from openclawd.engine.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterable

GREEDY = SamplingParams(temperature=0)
PENALISED = SamplingParams(temperature=0, repeat_penalty=1.5, repeat_last_n=32)
WARM = SamplingParams(temperature=0.9, top_k=0, top_p=1, seed=7)
PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a small dragon who",
    "A recipe for bread needs flour, water and",
    "def add(first, second):\n    return",
)
NUM_TOKENS = 12


def prompt_tokens(backend: Backend, text: str) -> list[int]:
    return backend.tokenize(text, add_special=True, parse_special=False)


def fresh(opened: list[Opening]) -> list[CacheOp]:
    """What empties the slots of new sequences."""
    return [DropCells(opening.slot) for opening in opened]


def forward(
    backend: Backend,
    chunks: list[Chunk],
    *,
    opened: list[Opening] | None = None,
    cache_ops: list[CacheOp] | None = None,
) -> Outputs:
    """Compute a batch; opened slots are emptied first unless `cache_ops` say what is in them."""
    opened = opened or []
    ops = fresh(opened) if cache_ops is None else cache_ops
    result = backend.forward(Batch(BatchKind.GENERATION, chunks, opened, ops))
    assert isinstance(result, Outputs), result
    return result


def generate(
    backend: Backend,
    prompt: list[int],
    num_tokens: int = NUM_TOKENS,
    *,
    sampling: SamplingParams = GREEDY,
    slot: int = 0,
    chunk_tokens: int = 512,
) -> list[int]:
    """The tokens that follow a prompt that is computed in chunks."""
    outputs = observe(
        backend, prompt, num_tokens, sampling=sampling, slot=slot, chunk_tokens=chunk_tokens
    )
    return [output.token for output in outputs]


def observe(
    backend: Backend,
    prompt: list[int],
    num_tokens: int = NUM_TOKENS,
    *,
    sampling: SamplingParams,
    slot: int = 0,
    chunk_tokens: int = 512,
    mu: float | None = None,
) -> list[TokenOutput]:
    """The same with what is told of each token. `mu` is where mirostat goes on."""
    tokens, found = list(prompt), []
    opened = [Opening(slot, tuple(tokens), len(tokens), sampling, mu)]
    computed = 0
    while len(found) < num_tokens:
        part = tokens[computed : computed + chunk_tokens]
        is_last = computed + len(part) == len(tokens)
        outputs = forward(backend, [Chunk(slot, computed, part, is_last)], opened=opened)
        opened, computed = [], computed + len(part)
        if is_last:
            found += outputs.tokens[slot]
            tokens += sampled(outputs, slot)
    return found


Chances = Sequence[tuple[int, float]]
"""Every token with its probability, the likeliest first."""


def choices(
    backend: Backend, sampling: SamplingParams, num_tokens: int = NUM_TOKENS
) -> list[tuple[int, Chances]]:
    """Sampled tokens, each with the chances that all tokens had before any filter."""
    sampling = replace(sampling, num_top=backend.info.vocab_size)
    outputs = observe(backend, prompt_tokens(backend, PROMPTS[1]), num_tokens, sampling=sampling)
    return [
        (output.token, [(token, math.exp(logprob)) for token, logprob in output.top])
        for output in outputs
    ]


def top_k(chances: Chances, k: float) -> list[int]:
    return [token for token, _ in chances[: int(k)]]


def top_p(chances: Chances, p: float) -> list[int]:
    """Keskar and others, "The Curious Case of Neural Text Degeneration", 2019."""
    sums = np.cumsum([chance for _, chance in chances])
    return [token for token, _ in chances[: int(np.searchsorted(sums, p + _ROUNDING)) + 1]]


def min_p(chances: Chances, p: float) -> list[int]:
    least = p * chances[0][1] * (1 - _ROUNDING)
    return [token for token, chance in chances if chance >= least]


def typical_p(chances: Chances, p: float) -> list[int]:
    """Meister and others, "Locally Typical Sampling", 2022."""
    possible = [(token, chance) for token, chance in chances if chance > 0]
    entropy = -sum(chance * math.log(chance) for _, chance in possible)
    typical = sorted(possible, key=lambda each: abs(-math.log(each[1]) - entropy))
    return top_p(typical, p)


def xtc(chances: Chances, threshold: float) -> list[int]:
    """Without all that have this chance, except the least likely of them."""
    num_above = sum(chance >= threshold + _ROUNDING for _, chance in chances)
    return [token for token, _ in chances[max(num_above - 1, 0) :]]


_ROUNDING = 1e-4
"""How far 32-bit sums over a vocabulary may be off."""

FILTERS = {
    "top_k": (top_k, {"top_k": 3}),
    "top_p": (top_p, {"top_p": 0.6}),
    "min_p": (min_p, {"min_p": 0.2}),
    "typical_p": (typical_p, {"typical_p": 0.5}),
    "typical_p of some": (typical_p, {"typical_p": 0.5, "ignore_eos": True}),
    "xtc": (xtc, {"xtc_threshold": 0.1, "xtc_probability": 1.0}),
}


def longest_repeat(backend: Backend, tokens: list[int], *, start: int) -> int:
    """Of the tokens from `start` on, the longest run before one that came before and was followed
    by the same, as DRY counts it: certain characters end a run."""
    breakers = {token for token in tokens if set(backend.piece(token)) & set(b'\n:"*')}
    longest = 0
    for end in range(start, len(tokens)):
        same = (i for i in range(end) if tokens[i] == tokens[end] not in breakers)
        for earlier in same:
            length = 0
            while length < earlier and tokens[earlier - 1 - length] not in breakers:
                if tokens[earlier - 1 - length] != tokens[end - 1 - length]:
                    break
                length += 1
            longest = max(longest, length)
    return longest


def sampled(outputs: Outputs, slot: int) -> list[int]:
    return [output.token for output in outputs.tokens[slot]]


def generate_together(
    backend: Backend, prompts: list[list[int]], samplings: Sequence[SamplingParams]
) -> list[list[int]]:
    """The tokens that follow each prompt, all computed in the same batches."""
    sequences = [list(prompt) for prompt in prompts]
    opened = [
        Opening(slot, tuple(prompt), len(prompt), sampling)
        for slot, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True))
    ]
    computed = [0] * len(prompts)
    for _ in range(NUM_TOKENS):
        chunks = [
            Chunk(slot, start, tokens[start:], num_outputs=1)
            for slot, (start, tokens) in enumerate(zip(computed, sequences, strict=True))
        ]
        computed = [len(tokens) for tokens in sequences]
        outputs = forward(backend, chunks, opened=opened)
        opened = []
        for slot, tokens in enumerate(sequences):
            tokens += sampled(outputs, slot)
    return [tokens[len(prompt) :] for prompt, tokens in zip(prompts, sequences, strict=True)]


def empty_all_slots(backend: Backend) -> None:
    """All but one token of slot 0: there is no batch of nothing."""
    opened = [Opening(0, (1,), 1, GREEDY)]
    ops: list[CacheOp] = [DropCells(slot) for slot in range(backend.info.parallel)]
    forward(backend, [Chunk(0, 0, [1], num_outputs=1)], opened=opened, cache_ops=ops)


def change(backend: Backend, *ops: CacheOp) -> None:
    """Cells alone; nothing is computed."""
    assert backend.forward(Batch(BatchKind.GENERATION, [], cache_ops=[*ops])) == Outputs()


def embed(backend: Backend, inputs: list[list[int]]) -> list[np.ndarray]:
    """The vectors of inputs that are computed in one batch."""
    opened = [Opening(slot, tuple(tokens), len(tokens), None) for slot, tokens in enumerate(inputs)]
    chunks = [Chunk(slot, 0, tokens, True) for slot, tokens in enumerate(inputs)]  # noqa: FBT003
    result = backend.forward(Batch(BatchKind.EMBEDDING, chunks, opened, fresh(opened)))
    assert isinstance(result, Outputs), result
    return [vector(result.vectors[slot]) for slot in range(len(inputs))]


def vector(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype="<f4")


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second)


def share_a_start(ours: Iterable[int], theirs: Iterable[int], *, num_tokens: int) -> bool:
    """Are the first tokens the same? Batches of other shapes round differently, so that a near tie
    may fall the other way some time later."""
    return list(ours)[:num_tokens] == list(theirs)[:num_tokens]


class BackendConformance:
    """The contract of `openclawd.backends.base.Backend`."""

    def needs_cells(self, backend: Backend) -> bool:
        """Does every token take a KV cell? Not where a model has only a state."""
        del backend
        return True

    def test_what_it_says_of_itself_is_possible(self, backend: Backend) -> None:
        info, limits = backend.info, backend.limits
        assert info.can_generate
        assert info.vocab_size > 0
        assert info.parameters > 0
        assert info.size_bytes > 0
        assert info.architecture
        assert 0 < info.context <= info.kv_tokens
        assert info.parallel <= limits.batch_tokens
        assert limits.splits_prompts

    def test_text_survives_tokens(self, backend: Backend) -> None:
        text = "Grüße, 世界! 🙂\n\tx = [1, 2]"
        tokens = backend.tokenize(text, add_special=False, parse_special=False)
        assert backend.detokenize(tokens).decode().strip() == text
        assert b"".join(map(backend.piece, tokens)).decode().strip() == text

    def test_control_tokens_come_only_from_text_that_may_hold_them(self, backend: Backend) -> None:
        text = backend.control_texts[0]
        parsed = backend.tokenize(text, add_special=False, parse_special=True)
        plain = backend.tokenize(text, add_special=False, parse_special=False)
        assert len(parsed) == 1
        assert parsed[0] not in plain
        assert backend.piece(parsed[0]) == b""
        assert backend.detokenize(parsed).decode() == text

    def test_a_text_has_no_fewer_tokens_than_promised(self, backend: Backend) -> None:
        for text in (" " * 500, "a" * 500, "word " * 100, "🙂" * 100):
            tokens = backend.tokenize(text, add_special=False, parse_special=False)
            assert len(tokens) * backend.max_token_bytes >= len(text.encode())

    def test_some_token_ends_and_most_do_not(self, backend: Backend) -> None:
        ends = [token for token in range(backend.info.vocab_size) if backend.is_end(token)]
        assert 0 < len(ends) < 100

    def test_greedy_is_deterministic_in_any_slot(self, backend: Backend) -> None:
        prompt = prompt_tokens(backend, PROMPTS[0])
        first = generate(backend, prompt)
        assert generate(backend, prompt) == first
        assert generate(backend, prompt, slot=3) == first

    def test_a_prompt_in_chunks_is_the_same_prompt(self, backend: Backend) -> None:
        prompt = prompt_tokens(backend, PROMPTS[1])
        whole = generate(backend, prompt)
        chunked = generate(backend, prompt, chunk_tokens=3)
        assert share_a_start(whole, chunked, num_tokens=6)

    def test_a_batch_gives_each_what_it_would_get_alone(self, backend: Backend) -> None:
        prompts = [prompt_tokens(backend, text) for text in PROMPTS]
        together = generate_together(backend, prompts, [GREEDY] * len(prompts))
        for prompt, tokens in zip(prompts, together, strict=True):
            assert share_a_start(tokens, generate(backend, prompt), num_tokens=6)
        assert len({tuple(tokens) for tokens in together}) == len(prompts)

    def test_samplings_in_a_batch_do_not_mix(self, backend: Backend) -> None:
        prompt = prompt_tokens(backend, PROMPTS[1])
        samplings = [GREEDY, WARM, GREEDY, SamplingParams(seed=8, temperature=0.9)]
        together = generate_together(backend, [prompt] * 4, samplings)
        assert together[0] == together[2]
        assert share_a_start(together[0], generate(backend, prompt), num_tokens=6)
        alone = generate(backend, prompt, sampling=WARM)
        assert share_a_start(together[1], alone, num_tokens=4)

    def test_the_seed_decides(self, backend: Backend) -> None:
        prompt = prompt_tokens(backend, PROMPTS[1])
        first = generate(backend, prompt, sampling=WARM)
        assert generate(backend, prompt, sampling=WARM) == first
        others = [
            generate(backend, prompt, sampling=SamplingParams(temperature=0.9, seed=seed))
            for seed in range(4)
        ]
        assert len({tuple(tokens) for tokens in [first, *others]}) > 1

    @pytest.mark.parametrize(
        "filters",
        [
            {"repeat_penalty": 1.3, "presence_penalty": 0.5},
            {"dry_multiplier": 0.8, "dry_allowed_length": 1},
            {"xtc_probability": 0.5, "typical_p": 0.9},
            {"mirostat": 1, "mirostat_eta": 0.5},
            {"mirostat": 2, "mirostat_eta": 0.5},
        ],
        ids=lambda filters: next(iter(filters)),
    )
    def test_a_sequence_that_is_opened_again_goes_on_as_it_would_have(
        self, backend: Backend, filters: dict[str, Any]
    ) -> None:
        sampling = SamplingParams(temperature=0.9, seed=5, **filters)
        prompt = prompt_tokens(backend, PROMPTS[1])
        whole = observe(backend, prompt, sampling=sampling)
        cut = 5
        known = prompt + [output.token for output in whole[:cut]]
        rest = observe(
            backend, known, NUM_TOKENS - cut, sampling=sampling, slot=1, mu=whole[cut - 1].mu
        )
        assert share_a_start(
            [output.token for output in rest],
            [output.token for output in whole[cut:]],
            num_tokens=4,
        )

    def test_logprobs_are_those_before_any_filter(self, backend: Backend) -> None:
        sampling = SamplingParams(temperature=1.5, top_k=5, logit_bias=((1, 3.0),), seed=3)
        size = backend.info.vocab_size
        for token, chances in choices(backend, sampling):
            assert sorted(each for each, _ in chances) == list(range(size))
            assert abs(sum(chance for _, chance in chances) - 1) < _ROUNDING
            assert all(a >= b for (_, a), (_, b) in pairwise(chances))
            assert token in top_k(chances, 5)
        asked = SamplingParams(temperature=0, num_top=2)
        prompt = prompt_tokens(backend, PROMPTS[1])
        for output in observe(backend, prompt, sampling=asked):
            assert len(output.top) == 2
            assert output.top[0] == (output.token, output.logprob)
        alone = replace(asked, num_top=0)
        assert all(o.logprob and not o.top for o in observe(backend, prompt, 4, sampling=alone))
        assert observe(backend, prompt, 1, sampling=GREEDY)[0].logprob is None

    @pytest.mark.parametrize("name", FILTERS)
    def test_a_filter_leaves_what_it_promises(self, backend: Backend, name: str) -> None:
        allowed, setting = FILTERS[name]
        off = {"top_k": 0, "top_p": 1.0, "temperature": 1.5, "seed": 11}
        sampling = SamplingParams(**{**off, **setting})
        bound = next(iter(setting.values()))
        some = [token for token, _ in choices(backend, sampling)]
        for token, chances in choices(backend, sampling):
            assert token in allowed(chances, bound)
        assert some != [token for token, _ in choices(backend, SamplingParams(**off))]

    def test_xtc_by_chance_leaves_some_tokens_as_they_were(self, backend: Backend) -> None:
        """With the only token left greedy, each step shows whether the likeliest was left out."""
        sampling = SamplingParams(
            temperature=1e-3, top_k=0, top_p=1, xtc_probability=0.5, xtc_threshold=0.01, seed=4
        )
        were_likeliest = [
            token == chances[0][0]
            for token, chances in choices(backend, sampling, 24)
            if len(xtc(chances, sampling.xtc_threshold)) < len(chances)
        ]
        assert 0 < sum(were_likeliest) < len(were_likeliest)

    def test_dry_breaks_a_run_that_came_before(self, backend: Backend) -> None:
        prompt = prompt_tokens(backend, "word word word word word word")
        again = {"temperature": 0.0, "logit_bias": ((prompt[-1], 50.0),)}
        assert set(generate(backend, prompt, sampling=SamplingParams(**again))) == {prompt[-1]}
        dry = SamplingParams(**again, dry_multiplier=1000.0, dry_allowed_length=2)
        tokens = prompt + generate(backend, prompt, sampling=dry)
        assert longest_repeat(backend, tokens, start=len(prompt)) < 2

    @pytest.mark.parametrize("version", [1, 2])
    def test_mirostat_steers_towards_its_surprise(self, backend: Backend, version: int) -> None:
        prompt = prompt_tokens(backend, PROMPTS[1])
        aimless = SamplingParams(temperature=1, seed=5, mirostat=version, num_top=0)
        mean_bits = []
        for tau in (0.01, 2.0, 8.0):
            outputs = observe(backend, prompt, 24, sampling=replace(aimless, mirostat_tau=tau))
            assert all(output.mu is not None for output in outputs)
            mean_bits.append(-sum(output.logprob or 0 for output in outputs) / 24 / math.log(2))
        assert mean_bits[0] < mean_bits[1] < mean_bits[2]
        assert abs(mean_bits[1] - 2.0) < 1
        greedy = replace(aimless, temperature=0)
        assert generate(backend, prompt, 4, sampling=greedy) == generate(backend, prompt, 4)

    def test_a_bias_forces_and_forbids_tokens(self, backend: Backend) -> None:
        prompt = prompt_tokens(backend, PROMPTS[0])
        likely = generate(backend, prompt, 1)[0]
        forced = backend.tokenize(" banana", add_special=False, parse_special=False)[0]
        bias = SamplingParams(temperature=0, logit_bias=((forced, 1000.0),))
        assert generate(backend, prompt, 3, sampling=bias) == [forced] * 3
        bias = SamplingParams(temperature=0, logit_bias=((likely, -1000.0),))
        assert generate(backend, prompt, 1, sampling=bias) != [likely]

    def test_the_end_is_impossible_for_good_or_for_the_first_tokens(self, backend: Backend) -> None:
        prompt = prompt_tokens(backend, PROMPTS[0])
        end = next(token for token in range(backend.info.vocab_size) if backend.is_end(token))
        wants_end = {"logit_bias": ((end, 1000.0),), "top_k": 0}
        for temperature in (0.0, 0.8):
            never = SamplingParams(**wants_end, temperature=temperature, ignore_eos=True)
            assert not any(map(backend.is_end, generate(backend, prompt, 4, sampling=never)))
            later = SamplingParams(**wants_end, temperature=temperature, min_tokens=2)
            tokens = generate(backend, prompt, 4, sampling=later)
            assert [backend.is_end(token) for token in tokens] == [False, False, True, True]
        resumed = [Opening(0, (*prompt, *tokens[:1]), len(prompt), later)]
        chunk = Chunk(0, 0, prompt + tokens[:1], num_outputs=1)
        assert not backend.is_end(sampled(forward(backend, [chunk], opened=resumed), 0)[0])

    def test_a_penalty_looks_back_on_the_prompt_and_the_answer(self, backend: Backend) -> None:
        prompt = prompt_tokens(backend, PROMPTS[0])
        bias = tuple((token, 50.0) for token in set(prompt))
        biased = SamplingParams(temperature=0, logit_bias=bias)
        assert set(generate(backend, prompt, sampling=biased)) <= set(prompt)
        penalised = SamplingParams(temperature=0, logit_bias=bias, presence_penalty=100.0)
        answer = generate(backend, prompt, sampling=penalised)
        assert not set(answer) & set(prompt)
        assert len(set(answer)) == len(answer)

    def test_the_narrowest_filters_are_greedy(self, backend: Backend) -> None:
        prompt = prompt_tokens(backend, PROMPTS[2])
        likeliest = generate(backend, prompt, 4)
        for narrow in ({"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}, {"temperature": 1e-30}):
            sampling = SamplingParams(**{"temperature": 1.0, **narrow, "seed": 3})
            assert generate(backend, prompt, 4, sampling=sampling) == likeliest

    def test_a_full_cache_is_a_result_and_changes_nothing(self, backend: Backend) -> None:
        if not self.needs_cells(backend):
            pytest.skip("this model's memory is never full")
        prompt = prompt_tokens(backend, PROMPTS[0])
        wanted = generate(backend, prompt)
        filler = (prompt_tokens(backend, "word " * 600))[: backend.info.kv_tokens // 3]
        for slot in (1, 2):
            generate(backend, filler, 1, slot=slot, chunk_tokens=backend.limits.batch_tokens)
        opened, status = [Opening(3, tuple(filler), len(filler), GREEDY)], None
        for start in range(0, len(filler), 100):
            chunk = Chunk(3, start, filler[start : start + 100], num_outputs=0)
            status = backend.forward(Batch(BatchKind.GENERATION, [chunk], opened, fresh(opened)))
            opened = []
            if isinstance(status, NoFreeCells):
                break
        assert isinstance(status, NoFreeCells)
        opened = [Opening(0, tuple(prompt), len(prompt), GREEDY)]
        chunk = Chunk(0, 0, prompt, num_outputs=1)
        emptied: list[CacheOp] = [DropCells(slot) for slot in range(4)]
        outputs = forward(backend, [chunk], opened=opened, cache_ops=emptied)
        assert sampled(outputs, 0) == [wanted[0]]

    # ---- kept prefixes ----

    def test_a_kept_prefix_serves_another_sequence(self, backend: Backend) -> None:
        """Kept under a tag, cut in two, and put together again: it goes on as if just computed."""
        if not backend.limits.num_prefix_tags:
            pytest.skip("this model cannot share cells")
        prompt = prompt_tokens(backend, " ".join(PROMPTS))
        wanted = generate(backend, prompt)
        tag, upper = backend.info.parallel, backend.info.parallel + 1
        end, cut = len(prompt) - 1, len(prompt) // 2
        kept: list[CacheOp] = [
            CopyCells(0, tag, 0, end),
            CopyCells(tag, upper, 0, cut),
            DropCells(tag, 0, cut),
            DropCells(0),
            DropCells(1),
            CopyCells(upper, 1, 0, cut),
            CopyCells(tag, 1, cut, end),
        ]
        tokens, computed = list(prompt), end
        opened = [Opening(1, tuple(prompt), len(prompt), GREEDY)]
        for _ in range(NUM_TOKENS):
            chunk = Chunk(1, computed, tokens[computed:], num_outputs=1)
            computed = len(tokens)
            tokens += sampled(forward(backend, [chunk], opened=opened, cache_ops=kept), 1)
            opened, kept = [], []
        forward(
            backend,
            [Chunk(2, 0, prompt[:1], num_outputs=1)],
            opened=[Opening(2, tuple(prompt), len(prompt), GREEDY)],
            cache_ops=[DropCells(owner) for owner in (1, 2, tag, upper)],
        )
        assert share_a_start(tokens[len(prompt) :], wanted, num_tokens=6)

    @pytest.mark.parametrize("sampling", [GREEDY, PENALISED, WARM])
    def test_what_was_parked_goes_on_where_it_was(
        self, backend: Backend, sampling: SamplingParams
    ) -> None:
        """In another slot, while its own is used by another sequence."""
        prompt = prompt_tokens(backend, PROMPTS[2])
        wanted = generate(backend, prompt, NUM_TOKENS, sampling=sampling)
        tokens = generate(backend, prompt, 5, sampling=sampling, slot=1)
        other = prompt_tokens(backend, PROMPTS[3])
        forward(
            backend,
            [Chunk(1, 0, other, num_outputs=1)],
            opened=[Opening(1, tuple(other), len(other), GREEDY)],
            cache_ops=[ParkSlot(1, key=7), DropCells(1)],
        )
        computed, tokens = len(prompt) + 4, prompt + tokens
        ops: list[CacheOp] = [DropCells(2), ResumeSlot(7, slot=2)]
        while len(tokens) < len(prompt) + NUM_TOKENS:
            chunk = Chunk(2, computed, tokens[computed:], num_outputs=1)
            computed = len(tokens)
            tokens += sampled(forward(backend, [chunk], cache_ops=ops), 2)
            ops = []
        assert share_a_start(tokens[len(prompt) :], wanted, num_tokens=8)

    def test_what_was_parked_can_be_forgotten(self, backend: Backend) -> None:
        prompt = prompt_tokens(backend, PROMPTS[2])
        wanted = generate(backend, prompt, 3)
        ops: list[CacheOp] = [ParkSlot(0, key=1), DropCells(0), ForgetParked(1)]
        opened = [Opening(0, tuple(prompt), len(prompt), GREEDY)]
        chunk = Chunk(0, 0, prompt, num_outputs=1)
        assert sampled(forward(backend, [chunk], opened=opened, cache_ops=ops), 0) == wanted[:1]

    @pytest.mark.parametrize("num_right", [0, 2, 3])
    def test_guessed_tokens_are_checked_in_one_step(self, backend: Backend, num_right: int) -> None:
        """What comes back is what would have been sampled, up to the first wrong guess and on."""
        if not backend.limits.can_drop_last:
            pytest.skip("this model cannot drop cells")
        prompt = prompt_tokens(backend, PROMPTS[0])
        wanted = generate(backend, prompt, 5)
        guesses = wanted[1 : 1 + num_right] + [wanted[1 + num_right] ^ 1] * (3 - num_right)
        opened = [Opening(1, tuple(prompt), len(prompt), GREEDY)]
        first = forward(backend, [Chunk(1, 0, prompt, num_outputs=1)], opened=opened)
        tokens = sampled(first, 1)
        chunk = Chunk(1, len(prompt), tokens + guesses, num_outputs=4)
        tokens += sampled(forward(backend, [chunk]), 1)
        assert tokens == wanted[: num_right + 2]
        computed = len(prompt) + len(tokens) - 1
        dropped = [DropCells(1, computed, len(prompt) + 4)]
        chunk = Chunk(1, computed, tokens[-1:], num_outputs=1)
        tokens += sampled(forward(backend, [chunk], cache_ops=dropped), 1)
        assert share_a_start(tokens, generate(backend, prompt, 6), num_tokens=num_right + 3)

    def test_a_batch_without_chunks_only_changes_cells(self, backend: Backend) -> None:
        prompt = prompt_tokens(backend, PROMPTS[0])
        generate(backend, prompt, 1)
        num_bytes = len(backend.copy_cells_out(0))
        assert backend.forward(Batch(BatchKind.GENERATION, [])) == Outputs()
        assert len(backend.copy_cells_out(0)) == num_bytes
        emptied = Batch(BatchKind.GENERATION, [], cache_ops=[DropCells(0)])
        assert backend.forward(emptied) == Outputs()
        assert len(backend.copy_cells_out(0)) < num_bytes

    # ---- cells outside the cache ----

    def test_cells_that_were_out_of_the_cache_go_on_as_before(self, backend: Backend) -> None:
        """In another slot, with another sequence's cells where they were."""
        prompt, other = (prompt_tokens(backend, text) for text in PROMPTS[:2])
        wanted, of_other = generate(backend, prompt), generate(backend, other)
        tokens = prompt + generate(backend, prompt, 3)
        data = backend.copy_cells_out(0)
        assert data == backend.copy_cells_out(0)
        assert generate(backend, other) == of_other
        assert backend.copy_cells_in(1, data)
        opened = [Opening(1, tuple(tokens), len(prompt), GREEDY)]
        computed, kept = len(tokens) - 1, list[CacheOp]()
        while len(tokens) < len(prompt) + NUM_TOKENS:
            chunk = Chunk(1, computed, tokens[computed:], num_outputs=1)
            computed = len(tokens)
            tokens += sampled(forward(backend, [chunk], opened=opened, cache_ops=kept), 1)
            opened = []
        assert share_a_start(tokens[len(prompt) :], wanted, num_tokens=6)

    def test_cells_that_are_cut_leave_the_slot_empty(self, backend: Backend) -> None:
        prompt = prompt_tokens(backend, PROMPTS[0])
        generate(backend, prompt, 1)
        data = backend.copy_cells_out(0)
        assert not backend.copy_cells_in(1, b"")
        empty = backend.copy_cells_out(1)
        for broken in (b"", data[:100], data[: len(data) // 2], data[:-1]):
            generate(backend, prompt, 1, slot=1)
            assert backend.copy_cells_out(1) != empty
            assert not backend.copy_cells_in(1, broken)
            assert backend.copy_cells_out(1) == empty

    def test_the_cells_of_a_part_can_be_put_back_under_a_tag(self, backend: Backend) -> None:
        """As they are when a prefix is restored that builds on another one."""
        if not backend.limits.num_prefix_tags:
            pytest.skip("this model cannot share cells")
        prompt = prompt_tokens(backend, " ".join(PROMPTS))
        wanted = generate(backend, prompt)
        end, cut, tags = len(prompt) - 1, len(prompt) // 2, range(4, 6)
        assert backend.info.parallel == tags[0]
        spans = list(zip(tags, (0, cut), (cut, end), strict=True))
        kept: list[CacheOp] = [CopyCells(0, tag, low, high) for tag, low, high in spans]
        kept += [DropCells(slot) for slot in range(4)]
        backend.forward(Batch(BatchKind.GENERATION, [], cache_ops=kept))
        for tag, low, high in spans:
            out: list[CacheOp] = [CopyCells(tag, 1, low, high), DropCells(tag)]
            backend.forward(Batch(BatchKind.GENERATION, [], cache_ops=out))
            data = backend.copy_cells_out(1)
            assert backend.copy_cells_in(2, data)
            back: list[CacheOp] = [CopyCells(2, tag, low, high), DropCells(1), DropCells(2)]
            backend.forward(Batch(BatchKind.GENERATION, [], cache_ops=back))
        given: list[CacheOp] = [CopyCells(tag, 3, low, high) for tag, low, high in spans]
        given += [DropCells(tag) for tag in tags]
        opened = [Opening(3, tuple(prompt), len(prompt), GREEDY)]
        outputs = forward(
            backend, [Chunk(3, end, prompt[end:], num_outputs=1)], opened=opened, cache_ops=given
        )
        assert sampled(outputs, 3) == wanted[:1]

    def test_a_stowed_prefix_goes_on_as_before(self, backend: Backend) -> None:
        """Its place is used by another sequence meanwhile; the second time it was copied out, as
        for another process."""
        if not backend.limits.num_prefix_tags:
            pytest.skip("this model cannot share cells")
        prompt, other = (prompt_tokens(backend, text) for text in (" ".join(PROMPTS), PROMPTS[1]))
        wanted, of_other = generate(backend, prompt), generate(backend, other)
        tag, end = backend.info.parallel, len(prompt) - 1
        generate(backend, prompt, 1)
        change(backend, CopyCells(0, tag, 0, end), DropCells(0))
        data = backend.copy_cells_out(tag)
        for is_from_elsewhere in (False, True):
            if is_from_elsewhere:
                change(backend, DropCells(tag))
                backend.stow(tag, data)
            else:
                change(backend, StowCells(tag))
            assert backend.copy_cells_out(tag) == data
            assert generate(backend, other) == of_other
            back: list[CacheOp] = [RestoreCells(tag), DropCells(1), CopyCells(tag, 1, 0, end)]
            opened = [Opening(1, tuple(prompt), len(prompt), GREEDY)]
            tokens, computed = list(prompt), end
            for _ in range(NUM_TOKENS):
                chunk = Chunk(1, computed, tokens[computed:], num_outputs=1)
                computed = len(tokens)
                outputs = forward(backend, [chunk], opened=opened, cache_ops=back)
                tokens += sampled(outputs, 1)
                opened, back = [], []
            assert share_a_start(tokens[len(prompt) :], wanted, num_tokens=6)
            change(backend, DropCells(1))
            assert backend.copy_cells_out(tag) == data
        empty_all_slots(backend)

    def test_what_was_stowed_is_forgotten_with_its_tag(self, backend: Backend) -> None:
        if not backend.limits.num_prefix_tags:
            pytest.skip("this model cannot share cells")
        tag = backend.info.parallel
        change(backend, DropCells(tag))
        empty = backend.copy_cells_out(tag)
        prompt = prompt_tokens(backend, PROMPTS[0])
        generate(backend, prompt, 1)
        change(backend, CopyCells(0, tag, 0, len(prompt)), DropCells(0), StowCells(tag))
        assert backend.copy_cells_out(tag) != empty
        change(backend, DropCells(tag))
        assert backend.copy_cells_out(tag) == empty

    def test_a_stowed_prefix_that_does_not_fit_is_told_of(self, backend: Backend) -> None:
        if not (backend.limits.num_prefix_tags and self.needs_cells(backend)):
            pytest.skip("this model cannot share cells, or its memory is never full")
        empty_all_slots(backend)
        filler = prompt_tokens(backend, "word " * 600)[: backend.info.kv_tokens // 2 - 8]
        tag = backend.info.parallel
        generate(backend, filler, 1, slot=1, chunk_tokens=backend.limits.batch_tokens)
        change(backend, CopyCells(1, tag, 0, len(filler)), DropCells(1), StowCells(tag))
        for slot in (2, 3):
            generate(backend, filler, 1, slot=slot, chunk_tokens=backend.limits.batch_tokens)
        restored = Batch(BatchKind.GENERATION, [], cache_ops=[RestoreCells(tag)])
        assert backend.forward(restored) == NoFreeCells((tag,))
        change(backend, DropCells(tag))
        empty_all_slots(backend)

    def test_cells_that_do_not_fit_leave_the_slot_empty(self, backend: Backend) -> None:
        if not self.needs_cells(backend):
            pytest.skip("this model's memory is never full")
        empty_all_slots(backend)
        empty = backend.copy_cells_out(1)
        filler = prompt_tokens(backend, "word " * 600)[: backend.info.kv_tokens // 2 - 8]
        for slot in (2, 3):
            generate(backend, filler, 1, slot=slot, chunk_tokens=backend.limits.batch_tokens)
        assert not backend.copy_cells_in(1, backend.copy_cells_out(2))
        assert backend.copy_cells_out(1) == empty
        empty_all_slots(backend)

    # ---- embeddings ----

    def test_vectors_are_normalised_and_do_not_depend_on_company(self, backend: Backend) -> None:
        inputs = [prompt_tokens(backend, text) for text in PROMPTS]
        together = embed(backend, inputs)
        for tokens, ours in zip(inputs, together, strict=True):
            (alone,) = embed(backend, [tokens])
            assert ours.shape == (backend.info.embedding_length,)
            assert abs(float(np.linalg.norm(ours)) - 1) < 1e-5
            assert cosine(ours, alone) > 0.999
        for first, second in pairwise(together):
            assert cosine(first, second) < 0.999

    def test_an_embedding_in_chunks_is_the_mean_over_all(self, backend: Backend) -> None:
        tokens = prompt_tokens(backend, PROMPTS[1])
        (whole,) = embed(backend, [tokens])
        opened = [Opening(0, tuple(tokens), len(tokens), None)]
        chunks = [Chunk(0, 0, tokens[:3], num_outputs=0)]
        first = Batch(BatchKind.EMBEDDING, chunks, opened, fresh(opened))
        assert backend.forward(first) == Outputs()
        rest = Batch(BatchKind.EMBEDDING, [Chunk(0, 3, tokens[3:], num_outputs=1)])
        result = backend.forward(rest)
        assert isinstance(result, Outputs)
        assert cosine(vector(result.vectors[0]), whole) > 0.999

    def test_embedding_and_generating_take_turns_without_a_trace(self, backend: Backend) -> None:
        prompt = prompt_tokens(backend, PROMPTS[0])
        wanted = generate(backend, prompt)
        tokens = list(prompt)
        opened = [Opening(3, tuple(tokens), len(tokens), GREEDY)]
        computed = 0
        for _ in range(NUM_TOKENS):
            chunk = Chunk(3, computed, tokens[computed:], num_outputs=1)
            computed = len(tokens)
            tokens += sampled(forward(backend, [chunk], opened=opened), 3)
            opened = []
            embed(backend, [prompt])
        assert share_a_start(tokens[len(prompt) :], wanted, num_tokens=6)
