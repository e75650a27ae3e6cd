"""What every backend must do with `SamplingParams.grammar`, as tests; see `conformance.py`.

The model must be able to generate, with tokens for ASCII text.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from backends.conformance import (
    GREEDY,
    PROMPTS,
    WARM,
    forward,
    generate,
    generate_together,
    prompt_tokens,
    sampled,
    share_a_start,
)

from openclawd.backends.base import GrammarFailed
from openclawd.engine.batch import Chunk, Opening
from openclawd.engine.prefixes import num_same
from openclawd.engine.sampling import SamplingParams

if TYPE_CHECKING:
    from openclawd.backends.base import Backend

DIGITS_AND_WORD = 'start: /[0-9]{2,4}/ " " ("apples" | "pears")'
"""11 tokens at most, and the end: `NUM_TOKENS` of `conformance.py`."""


def text_up_to_the_end(backend: Backend, tokens: list[int]) -> str:
    return b"".join(map(backend.piece, up_to_the_end(backend, tokens))).decode()


def up_to_the_end(backend: Backend, tokens: list[int]) -> list[int]:
    """What comes before the first token that ends a text; there must be one."""
    return tokens[: [backend.is_end(token) for token in tokens].index(True)]


class GrammarConformance:
    """The contract of `Backend.check_grammar` and of `SamplingParams.grammar`."""

    @pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "warm"])
    def test_the_output_follows_its_grammar_to_the_end(
        self, backend: Backend, sampling: SamplingParams
    ) -> None:
        """With company that is free, and that gets what it would get alone."""
        prompts = [prompt_tokens(backend, text) for text in PROMPTS[:2]]
        samplings = [replace(sampling, grammar=DIGITS_AND_WORD), GREEDY]
        constrained, free = generate_together(backend, prompts, samplings)
        text = text_up_to_the_end(backend, constrained)
        assert re.fullmatch("[0-9]{2,4} (apples|pears)", text)
        assert share_a_start(free, generate(backend, prompts[1]), num_tokens=6)

    @pytest.mark.parametrize("ending", [{"ignore_eos": True}, {"min_tokens": 100}], ids=str)
    def test_where_the_grammar_is_complete_the_text_ends_whatever_else_is_asked(
        self, backend: Backend, ending: dict[str, Any]
    ) -> None:
        sampling = replace(WARM, grammar=DIGITS_AND_WORD, **ending)
        prompt = prompt_tokens(backend, PROMPTS[0])
        tokens = generate(backend, prompt, sampling=sampling)
        text = text_up_to_the_end(backend, tokens)
        assert re.fullmatch("[0-9]{2,4} (apples|pears)", text)

    @pytest.mark.parametrize(
        "filters",
        [
            {"typical_p": 0.5, "top_k": 0},
            {"xtc_probability": 1.0, "xtc_threshold": 0.01},
            {"dry_multiplier": 1.0},
            {"mirostat": 1},
            {"mirostat": 2},
            {"repeat_penalty": 1.5, "logit_bias": ((5, 100.0),)},
        ],
        ids=str,
    )
    def test_every_filter_works_on_what_the_grammar_leaves(
        self, backend: Backend, filters: dict[str, Any]
    ) -> None:
        sampling = SamplingParams(seed=3, temperature=1.5, grammar=DIGITS_AND_WORD, **filters)
        prompt = prompt_tokens(backend, PROMPTS[0])
        text = text_up_to_the_end(backend, generate(backend, prompt, sampling=sampling))
        assert re.fullmatch("[0-9]{2,4} (apples|pears)", text)

    def test_a_constrained_sequence_that_is_opened_again_goes_on_as_it_would_have(
        self, backend: Backend
    ) -> None:
        sampling = replace(WARM, grammar=DIGITS_AND_WORD)
        prompt = prompt_tokens(backend, PROMPTS[0])
        wanted = up_to_the_end(backend, generate(backend, prompt, sampling=sampling))
        for num_done in range(1, len(wanted)):
            tokens = prompt + wanted[:num_done]
            opened = [Opening(2, tuple(tokens), len(prompt), sampling)]
            outputs = forward(backend, [Chunk(2, 0, tokens, num_outputs=1)], opened=opened)
            assert sampled(outputs, 2) == wanted[num_done : num_done + 1]

    def test_guessed_tokens_are_checked_against_the_grammar_in_order(
        self, backend: Backend
    ) -> None:
        """A guess that the grammar forbids is never right, and the ones before it count."""
        sampling = replace(GREEDY, grammar=DIGITS_AND_WORD)
        prompt = prompt_tokens(backend, PROMPTS[0])
        wanted = generate(backend, prompt, 4, sampling=sampling)
        free = generate(backend, prompt, 1)[0]
        assert free != wanted[0]
        for guesses in ([wanted[1], wanted[2]], [wanted[1], free], [free, wanted[2]]):
            opened = [Opening(1, tuple(prompt), len(prompt), sampling)]
            first = forward(backend, [Chunk(1, 0, prompt, num_outputs=1)], opened=opened)
            chunk = Chunk(1, len(prompt), sampled(first, 1) + guesses, num_outputs=3)
            num_right = num_same(guesses, wanted[1:3], offset=0)
            tokens = sampled(forward(backend, [chunk]), 1)
            assert tokens == wanted[1 : num_right + 2]

    def test_a_grammar_that_cannot_go_on_ends_its_own_sequence_only(self, backend: Backend) -> None:
        prompts = [prompt_tokens(backend, text) for text in PROMPTS[:2]]
        chunks = [Chunk(slot, 0, prompt, num_outputs=1) for slot, prompt in enumerate(prompts)]
        samplings = [replace(GREEDY, grammar="{"), GREEDY]
        opened = [
            Opening(slot, tuple(prompt), len(prompt), sampling)
            for slot, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True))
        ]
        outputs = forward(backend, chunks, opened=opened)
        assert "cannot follow its grammar" in outputs.failed.pop(0)
        assert not outputs.failed
        assert [*outputs.tokens] == [1]
        assert sampled(outputs, 1) == generate(backend, prompts[1], 1)

    def test_a_grammar_is_checked_beforehand(self, backend: Backend) -> None:
        backend.check_grammar(DIGITS_AND_WORD)
        with pytest.raises(GrammarFailed, match="unknown name"):
            backend.check_grammar("start: nothing")
        with pytest.raises(GrammarFailed, match="no text"):
            backend.check_grammar(r"start: /[^\s\S]/")
