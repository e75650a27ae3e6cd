"""Token limits: what fits runs, what does not is refused with the numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawctl.wire.errors import LimitExceeded, PromptTooLong
from openclawd.admission.limits import (
    TokenLimits,
    check_answer_tokens,
    check_choices,
    check_min_tokens,
    check_prompt_bytes,
    plan_completion,
)

counts = st.integers(1, 5000)


@given(prompt=counts, asked=st.none() | counts, context=counts, most_in=st.none() | counts)
def test_a_plan_always_fits(
    prompt: int, asked: int | None, context: int, most_in: int | None
) -> None:
    limits = TokenLimits("m", context, max_input_tokens=most_in, max_output_tokens=1024, parallel=8)
    is_short_enough = prompt < context and (most_in is None or prompt <= most_in)
    if not is_short_enough:
        with pytest.raises(PromptTooLong, match=str(prompt)):
            plan_completion(prompt, asked, limits)
    elif asked is not None and asked > 1024:
        with pytest.raises(LimitExceeded, match="1024"):
            plan_completion(prompt, asked, limits)
    elif asked is not None and prompt + asked > context:
        with pytest.raises(PromptTooLong, match=str(prompt + asked)):
            plan_completion(prompt, asked, limits)
    else:
        planned = plan_completion(prompt, asked, limits)
        assert planned == (asked or min(1024, context - prompt))


def test_a_context_that_is_too_small_names_all_three_numbers() -> None:
    limits = TokenLimits("m", 100, max_input_tokens=None, max_output_tokens=1024, parallel=8)
    with pytest.raises(PromptTooLong, match=r"90 prompt tokens \+ max_tokens 20 = 110.*100 tokens"):
        plan_completion(90, 20, limits)


def test_a_prompt_is_refused_on_its_bytes_alone() -> None:
    limits = TokenLimits("m", 100, max_input_tokens=None, max_output_tokens=1024, parallel=8)
    check_prompt_bytes(100 * 64 + 63, longest_token_bytes=64, limits=limits)
    with pytest.raises(PromptTooLong, match="6464 bytes"):
        check_prompt_bytes(101 * 64, longest_token_bytes=64, limits=limits)


def test_more_tokens_at_least_than_at_most() -> None:
    check_min_tokens(20, 20)
    with pytest.raises(LimitExceeded, match="min_tokens is 21, but the answer can have 20 tokens"):
        check_min_tokens(21, 20)


def test_more_tokens_than_a_result_can_hold() -> None:
    check_answer_tokens(1_000_000)
    with pytest.raises(LimitExceeded, match="one result holds 1044480 at most"):
        check_answer_tokens(1_044_481)


def test_more_choices_than_sequences() -> None:
    limits = TokenLimits("m", 100, max_input_tokens=None, max_output_tokens=1024, parallel=8)
    check_choices(8, limits)
    with pytest.raises(LimitExceeded, match=r"n is 9; model m computes 8 sequences at once"):
        check_choices(9, limits)
