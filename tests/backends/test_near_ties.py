"""The judge of near ties: it lets a tie pass, counts it, and lets nothing else pass."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from near_ties import SMOLLM2_NEAR_TIE, NearTies

from openclawd.engine.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROMPT = "The capital of France is"


@pytest.fixture
def judge(model_path: Path) -> Iterator[NearTies]:
    with NearTies(model_path, SMOLLM2_NEAR_TIE) as judge:
        yield judge


def test_same_answers_do_not_part(judge: NearTies) -> None:
    judge.check(PROMPT, [1, 2, 3], [1, 2, 3])
    assert (judge.num_compared, judge.partings) == (1, [])


def test_the_gap_is_that_of_the_worse_choice(judge: NearTies) -> None:
    first, second = np.argsort(judge.logits(judge.tokens(PROMPT)))[[-1, -2]].tolist()
    logits = judge.logits(judge.tokens(PROMPT))
    parting = judge.parting(PROMPT, [second, 5], [first])
    assert parting is not None
    assert parting.position == 0
    assert parting.gap == pytest.approx(float(logits[first] - logits[second]))
    later = judge.parting(PROMPT, [first, 7, 5], [first, 7, 6])
    assert later is not None
    assert later.position == 2
    assert judge.parting(judge.tokens(PROMPT), [first, 7, 5], [first, 7, 6]) == later


def test_only_near_ties_pass_and_they_are_counted(judge: NearTies) -> None:
    first, second = np.argsort(judge.logits(judge.tokens(PROMPT)))[[-1, -2]].tolist()
    with pytest.raises(AssertionError, match=r"part at 0, where the gap is 2\."):
        judge.check(PROMPT, [first], [second])
    judge.most_gap = 3.0
    judge.check(PROMPT, [second], [first])
    assert judge.num_compared == 2
    assert len(judge.partings) == 2


def test_an_answer_that_is_cut_short_is_no_tie(judge: NearTies) -> None:
    with pytest.raises(AssertionError, match="cut short"):
        judge.check(PROMPT, [1, 2], [1, 2, 3])


def test_a_draw_is_a_near_tie_if_a_small_shift_changes_it(judge: NearTies) -> None:
    prompt = judge.tokens(PROMPT)
    for seed in range(50):
        sampling = SamplingParams(temperature=1.5, top_k=50, top_p=1.0, seed=seed)
        drawn = judge.answer(prompt, 1, sampling)
        shifted = replace(sampling, logit_bias=((drawn[0], -SMOLLM2_NEAR_TIE / 2),))
        if (other := judge.answer(prompt, 1, shifted)) != drawn:
            break
    judge.check(prompt, drawn, other, sampling)
    (parting,) = judge.partings
    assert 0 < parting.gap <= SMOLLM2_NEAR_TIE
    unlikely = int(judge.logits(prompt).argmin())
    with pytest.raises(AssertionError, match="the gap is inf"):
        judge.check(prompt, drawn, [unlikely], sampling)
