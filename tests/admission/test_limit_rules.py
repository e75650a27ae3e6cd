"""Which limit rules a request is under, and whose value counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawd.admission.limit_rules import (
    Action,
    LimitRule,
    LimitRules,
    OnTooLong,
    Situation,
    When,
    strictest,
)
from openclawd.admission.subjects import Match, Subject

ALICE = Subject("user:alice", groups=("research",), app="notes", operation="chat")


@given(values=st.lists(st.none() | st.integers(1, 9)))
def test_the_smallest_value_wins_and_of_equal_ones_the_first(values: list[int | None]) -> None:
    rules = [LimitRule(str(n), max_prompt_tokens=value) for n, value in enumerate(values)]
    found = strictest(rules, "max_prompt_tokens")
    given_values = [value for value in values if value is not None]
    if not given_values:
        assert found is None
        return
    assert found is not None
    rule, value = found
    assert value == min(given_values)
    assert int(rule.name) == values.index(value)


@pytest.mark.parametrize(
    ("when", "situation", "holds"),
    [
        (When(), Situation(), True),
        (When(queue_depth_over=20), Situation(queue_depth=20), False),
        (When(queue_depth_over=20), Situation(queue_depth=21), True),
        (When(budget_left_below=0.2), Situation(budget_left=lambda: 0.2), False),
        (When(budget_left_below=0.2), Situation(budget_left=lambda: 0.19), True),
        (When(prompt_tokens_over=5), Situation(prompt_tokens=5), False),
        (When(prompt_tokens_over=5), Situation(prompt_tokens=6), True),
        (When(operation=("embed", "ch*")), Situation(), True),
        (When(operation=("embed",)), Situation(), False),
        (When(app=("note?",)), Situation(), True),
        (When(app=("mail",)), Situation(), False),
        (When(app=("notes",), queue_depth_over=0), Situation(), False),
        (When(app=("notes",), queue_depth_over=0), Situation(queue_depth=1), True),
    ],
)
def test_all_conditions_must_hold(when: When, situation: Situation, holds: bool) -> None:
    assert when.holds(ALICE, situation) is holds
    rule = LimitRule("r", max_prompt_tokens=1, when=when)
    assert LimitRules([rule]).of(ALICE).applying(situation) == ([rule] if holds else [])


def test_rules_about_others_do_not_apply() -> None:
    mine = LimitRule("mine", Match(group=("res*",)), max_parallel=1)
    other = LimitRule("other", Match(principal=("user:bob",)), max_parallel=1)
    assert LimitRules([other, mine]).of(ALICE).applying(Situation()) == [mine]


@pytest.mark.parametrize("action", [action for action in Action if action is not Action.FALLBACK])
def test_policies_as_the_configuration_has_them(action: Action) -> None:
    assert OnTooLong.parse(action.value) == OnTooLong(action)
    assert OnTooLong(action).truncates == action.value.startswith("truncate")


def test_a_fallback_has_a_model_and_nothing_else_has() -> None:
    assert OnTooLong.parse("fallback:qwen:7b") == OnTooLong(Action.FALLBACK, "qwen:7b")
    for text in ("fallback", "fallback:", "error:m", "cut"):
        with pytest.raises(ValueError, match=r"fallback|not a valid"):
            OnTooLong.parse(text)
