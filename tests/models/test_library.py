"""The models that tests make are what they say: of their kind, and of opinions of their own."""

from __future__ import annotations

import os
from itertools import combinations
from typing import TYPE_CHECKING

import llama_cpp
import numpy as np
import pytest
from models.tiny import WINDOW, WRITERS
from near_ties import SMOLLM2_NEAR_TIE, NearTies

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    from models.library import ModelLibrary

PROMPT = "Once upon a time there was a small dragon who lived in a cave"


@pytest.mark.parametrize("kind", WRITERS)
def test_a_model_is_of_its_kind(models: ModelLibrary, kind: str) -> None:
    params = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(os.fsencode(models.tiny(kind)), params)
    is_kind = {
        "recurrent": llama_cpp.llama_model_is_recurrent(model),
        "hybrid": llama_cpp.llama_model_is_hybrid(model),
        "window": llama_cpp.llama_model_n_swa(model) == WINDOW,
    }
    llama_cpp.llama_model_free(model)
    assert [name for name, is_it in is_kind.items() if is_it] == [kind] * (kind != "full")


@pytest.mark.parametrize("kind", WRITERS)
def test_an_answer_depends_on_the_first_token_and_varies(models: ModelLibrary, kind: str) -> None:
    """Else a cell too few or too many would not show."""
    with NearTies(models.tiny(kind), 0) as judge:
        prompt = judge.tokens(f"{PROMPT}. " * 4)
        answer = judge.answer(prompt, 16)
        assert len(set(answer)) > 8
        assert judge.answer([prompt[0] + 1, *prompt[1:]], 16) != answer


def test_a_draft_agrees_mostly(models: ModelLibrary) -> None:
    with NearTies(models.tiny("full"), 0) as target, NearTies(models.tiny_draft(), 0) as draft:
        tokens = target.tokens(PROMPT)
        answer = target.answer(tokens, 40)
        likeliest = [int(draft.logits([*tokens, *answer[:i]]).argmax()) for i in range(40)]
    assert 20 < sum(map(int.__eq__, likeliest, answer)) < 40


@pytest.mark.parametrize("kind", [*WRITERS, "smollm2"])
def test_an_adapter_changes_more_than_rounding_does(
    models: ModelLibrary, model_path: Path, kind: str
) -> None:
    if kind == "smollm2":
        path, adapters = model_path, [models.smollm2_adapter(1), models.smollm2_adapter(2)]
    else:
        path, adapters = models.tiny(kind), [models.tiny_adapter(seed, kind) for seed in (1, 2)]
    for ours, theirs in combinations([_logits(path, each) for each in (None, *adapters)], 2):
        assert np.abs(ours - theirs).max() > 4 * SMOLLM2_NEAR_TIE


def _logits(path: Path, adapter: Path | None) -> npt.NDArray[np.float32]:
    with NearTies(path, 0, adapter=adapter) as judge:
        return judge.logits(judge.tokens(PROMPT))
