"""Token limits: what fits runs, what does not is refused with the numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawctl.wire.errors import LimitExceeded, PromptTooLong
from openclawd.admission.limit_rules import Action, LimitRule, OnTooLong
from openclawd.admission.limits import (
    Asked,
    TokenLimits,
    check_answer_tokens,
    check_bytes_beside,
    check_bytes_to_cut,
    check_choices,
    check_min_tokens,
    check_prompt_bytes,
    check_prompt_tokens,
    check_total_tokens,
    excess_of,
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
            plan_completion(prompt, Asked(1, asked), limits)
    elif asked is not None and asked > 1024:
        with pytest.raises(LimitExceeded, match="1024"):
            plan_completion(prompt, Asked(1, asked), limits)
    elif asked is not None and prompt + asked > context:
        with pytest.raises(PromptTooLong, match=str(prompt + asked)):
            plan_completion(prompt, Asked(1, asked), limits)
    else:
        planned = plan_completion(prompt, Asked(1, asked), limits)
        assert planned == (asked or min(1024, context - prompt))


def test_a_context_that_is_too_small_names_all_three_numbers() -> None:
    limits = TokenLimits("m", 100, max_input_tokens=None, max_output_tokens=1024, parallel=8)
    with pytest.raises(PromptTooLong, match=r"90 prompt tokens \+ max_tokens 20 = 110.*100 tokens"):
        plan_completion(90, Asked(1, 20), limits)


def test_what_is_told_of_a_maximum_that_is_too_large_fits_the_context_too() -> None:
    limits = TokenLimits("m", 100, max_input_tokens=None, max_output_tokens=1024, parallel=8)
    with pytest.raises(LimitExceeded, match="model m allows 1024") as caught:
        plan_completion(1, Asked(1, 2000), limits)
    assert caught.value.hint == "ask for at most 99 tokens"


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


# ---- rules ----

policies = st.sampled_from([OnTooLong(action) for action in Action if action.value != "fallback"])
bounds = st.none() | st.integers(1, 3000)


@st.composite
def rules_of_tokens(draw: st.DrawFn) -> list[LimitRule]:
    return [
        LimitRule(
            f"rule{number}",
            max_prompt_tokens=draw(bounds),
            max_completion_tokens=draw(bounds),
            max_total_tokens=draw(bounds),
            on_too_long=draw(policies),
        )
        for number in range(draw(st.integers(0, 4)))
    ]


asks = st.builds(Asked, n=st.integers(1, 4), max_tokens=st.none() | st.integers(1, 2000))
models = st.builds(
    TokenLimits,
    st.just("m"),
    st.integers(16, 4000),
    max_input_tokens=bounds,
    max_output_tokens=st.integers(1, 2000),
    parallel=st.just(8),
    on_too_long=policies,
)


def keeps_all(
    prompt: int, asked: Asked, planned: int, limits: TokenLimits, rules: list[LimitRule]
) -> bool:
    """The limits one by one, as their keys are documented."""
    completion = asked.n * planned
    own = prompt + planned <= limits.context and planned <= limits.max_output_tokens
    return (
        own
        and prompt <= (limits.max_input_tokens or prompt)
        and all(
            prompt <= (rule.max_prompt_tokens or prompt)
            and completion <= (rule.max_completion_tokens or completion)
            and prompt + completion <= (rule.max_total_tokens or prompt + completion)
            for rule in rules
        )
    )


@given(prompt=counts, asked=asks, limits=models, rules=rules_of_tokens())
def test_the_strictest_of_all_limits_wins(
    prompt: int, asked: Asked, limits: TokenLimits, rules: list[LimitRule]
) -> None:
    if not keeps_all(prompt, asked, asked.least, limits, rules):
        names = "|".join(["model m", *(rule.name for rule in rules)])
        with pytest.raises((PromptTooLong, LimitExceeded), match=names):
            plan_completion(prompt, asked, limits, rules)
        return
    planned = plan_completion(prompt, asked, limits, rules)
    assert keeps_all(prompt, asked, planned, limits, rules)
    assert asked.max_tokens == planned or not keeps_all(prompt, asked, planned + 1, limits, rules)


@given(prompt=counts, asked=asks, limits=models, rules=rules_of_tokens())
def test_what_is_cut_as_it_is_said_fits(
    prompt: int, asked: Asked, limits: TokenLimits, rules: list[LimitRule]
) -> None:
    excess = excess_of(prompt, asked, limits, rules)
    if excess is None or not excess.truncates:
        return
    with pytest.raises(PromptTooLong):
        plan_completion(prompt, asked, limits, rules)
    assert 0 < excess.max_prompt_tokens < prompt
    assert plan_completion(excess.max_prompt_tokens, asked, limits, rules) >= asked.least


ROOMY = TokenLimits("m", 4000, max_input_tokens=None, max_output_tokens=1024, parallel=8)
SHORT = LimitRule("short", max_prompt_tokens=100, on_too_long=OnTooLong(Action.TRUNCATE_HEAD))
LONG = LimitRule("long", max_prompt_tokens=200)


def test_the_policy_is_that_of_the_strictest_limit() -> None:
    excess = excess_of(300, Asked(), ROOMY, [LONG, SHORT])
    assert excess is not None
    assert (excess.on_too_long, excess.max_prompt_tokens) == (SHORT.on_too_long, 100)
    excess = excess_of(300, Asked(), ROOMY, [LONG])
    assert excess is not None
    assert not excess.truncates
    assert excess_of(200, Asked(), ROOMY, [LONG]) is None


@pytest.mark.parametrize(
    ("prompt", "asked", "message"),
    [
        (201, Asked(), "has 201 tokens; limit short allows 100 .max_prompt_tokens."),
        (
            100,
            Asked(2, 30),
            "max_tokens 30 for each of 2 choices asks for 60 .*limit few allows 50",
        ),
        (
            90,
            Asked(1, 40),
            "90 prompt tokens . max_tokens 40 = 130; limit all allows 120 .max_total",
        ),
        (95, Asked(26), "95 tokens, which leave no room for an answer; limit all allows 120"),
    ],
)
def test_a_refusal_names_the_rule_the_asked_and_the_allowed(
    prompt: int, asked: Asked, message: str
) -> None:
    few = LimitRule("few", max_completion_tokens=50)
    total = LimitRule("all", max_total_tokens=120)
    with pytest.raises((PromptTooLong, LimitExceeded), match=message):
        plan_completion(prompt, asked, ROOMY, [LONG, SHORT, few, total])


def test_a_cut_leaves_room_for_an_answer() -> None:
    cuts = TokenLimits("m", 4000, None, 1024, 8, OnTooLong(Action.TRUNCATE_MIDDLE))
    for asked, room in ((Asked(), 1000), (Asked(1, 300), 300), (Asked(4, 7), 7)):
        excess = excess_of(5000, asked, cuts)
        assert excess is not None
        assert excess.max_prompt_tokens == 4000 - room
    assert excess_of(5000, Asked(1, 2000), cuts) is None  # such an answer is refused anyway


def test_embeddings_are_limited_by_text_and_together() -> None:
    check_prompt_tokens(100, ROOMY, [SHORT])
    with pytest.raises(PromptTooLong, match="limit short allows 100"):
        check_prompt_tokens(101, ROOMY, [SHORT])
    total = LimitRule("all", max_total_tokens=120)
    check_total_tokens(120, [total])
    with pytest.raises(LimitExceeded, match=r"121 tokens together; limit all allows 120"):
        check_total_tokens(121, [total])
    check_prompt_tokens(4000, ROOMY, [total])  # all of the context, for no answer follows


def test_what_a_template_may_leave_out_may_be_longer_but_not_without_end() -> None:
    check_bytes_beside(1024 * 1024, ROOMY)
    with pytest.raises(PromptTooLong, match=r"have 1048577 bytes; .* at most 1048576 are read"):
        check_bytes_beside(1024 * 1024 + 1, ROOMY)
    large = replace(ROOMY, context=1_000_000)
    check_bytes_beside(16_000_000, large)
    with pytest.raises(PromptTooLong, match=r"at most 16000000 are read"):
        check_bytes_beside(16_000_001, large)


def test_a_prompt_that_may_be_cut_may_be_longer_but_not_without_end() -> None:
    check_bytes_to_cut(4 * 1024 * 1024, longest_token_bytes=1, limits=ROOMY)
    with pytest.raises(PromptTooLong, match="4194305 bytes"):
        check_bytes_to_cut(4 * 1024 * 1024 + 1, longest_token_bytes=1, limits=ROOMY)
