"""Cancelling any request at any step never changes another request's tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds.driver import Ask, Engine
from near_ties import SMOLLM2_NEAR_TIE, NearTies

from openclawd.backends import llama
from openclawd.backends.base import LoadSpec
from openclawd.engine.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from openclawd.backends.llama import LlamaBackend

NUM_TOKENS = 6
MOST_PARTINGS = 0.1
"""Of all the answers that are compared. Whoever is cancelled leaves the others larger pieces of
their prompts to compute at once, so most are rounded otherwise."""

CHAT = (
    "<|im_start|>system\nYou are a patient teacher who answers in plain words.<|im_end|>\n"
    "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
)
QUESTIONS = (
    ("Why is the sky blue?", SamplingParams(temperature=0)),
    ("What do bees eat in winter?", SamplingParams(temperature=0.7, seed=7)),
    ("Name three rivers in France.", SamplingParams(temperature=0, repeat_penalty=1.1)),
    ("How does a lock in a canal work, and who built the first?", SamplingParams(temperature=0)),
    ("What colour is grass?", SamplingParams(temperature=0.6, top_k=20, seed=12)),
    ("Who wrote Faust?", SamplingParams(temperature=0.7, top_p=0.9, presence_penalty=0.3, seed=7)),
)
NUM_STEPS = 24
"""About as many as all the requests take together."""

cancels = st.dictionaries(
    st.integers(0, len(QUESTIONS) - 1), st.integers(0, NUM_STEPS), min_size=1, max_size=3
)


class World:
    """SmolLM2 with requests that share a beginning and are drawn in several ways; more of them than
    there are slots. `undisturbed` are their answers when none is cancelled."""

    def __init__(self, backend: LlamaBackend, judge: NearTies) -> None:
        self.backend = backend
        self.judge = judge
        self.asks = [
            Ask(tuple(self._tokens(question)), replace(sampling, ignore_eos=True))
            for question, sampling in QUESTIONS
        ]
        self.undisturbed = self.answers({})

    def answers(self, cancels: dict[int, int]) -> list[list[int]]:
        """Of every request, when these are cancelled after so many steps."""
        engine = Engine(self.backend, min_kept_tokens=8, kept_share=0.5, batch_tokens=24)
        rids = [engine.ask(ask, NUM_TOKENS) for ask in self.asks]
        for step in range(NUM_STEPS):
            for rid, when in cancels.items():
                if when == step:
                    engine.abort(rid)
            engine.step()
        engine.run()
        return [engine.answer(rid) for rid in rids]

    def _tokens(self, question: str) -> list[int]:
        text = CHAT.format(question=question)
        return self.backend.tokenize(text, add_special=True, parse_special=True)


@pytest.fixture(scope="module")
def world(model_path: Path) -> Iterator[World]:
    spec = LoadSpec(
        str(model_path), parallel=4, context=256, kv_tokens=512, batch_tokens=64, threads=1
    )
    backend = llama.load(spec, lambda _: True)
    with NearTies(model_path, SMOLLM2_NEAR_TIE) as judge:
        yield World(backend, judge)
        assert len(judge.partings) <= MOST_PARTINGS * judge.num_compared, judge.partings
    backend.close()


@settings(max_examples=8, deadline=None, derandomize=True)
@given(cancels)
def test_cancelling_never_changes_another_answer(world: World, cancels: dict[int, int]) -> None:
    answers = world.answers(cancels)
    for rid, (ask, ours, undisturbed) in enumerate(
        zip(world.asks, answers, world.undisturbed, strict=True)
    ):
        if rid in cancels:
            assert len(ours) <= NUM_TOKENS
            undisturbed = undisturbed[: len(ours)]
        world.judge.check(ask.tokens, ours, undisturbed, ask.sampling)
