"""Answers are taken apart at their marks, and nothing else of them is lost."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawd.worker.answer import AnswerMarks, AnswerParser, CallMarks, Pieces, WrittenCall


def parse(body: str, is_closed: bool) -> list[WrittenCall] | None:
    """A test's calls: a JSON object with one name, which has the arguments."""
    del is_closed
    try:
        ((name, arguments),) = json.loads(body).items()
    except (ValueError, AttributeError):
        return None
    return [WrittenCall(name, json.dumps(arguments))]


THINK = AnswerMarks("<think>", "</think>")
TOOLS = AnswerMarks("<think>", "</think>", calls=CallMarks(("<call>",), (), "</call>", parse))
OPEN_END = AnswerMarks(calls=CallMarks(("[CALL]",), (), "", parse))
WHOLE = AnswerMarks(
    dropped=("<|python|>",), calls=CallMarks((), ("{",), "", parse, keeps_first=True)
)
CHANNELS = AnswerMarks(
    "<|channel|>analysis<|message|>",
    "<|end|>",
    "<|start|>assistant<|channel|>analysis<|message|>",
    dropped=("<|start|>assistant<|channel|>final<|message|>", "<|channel|>final<|message|>"),
)
EVERY = (THINK, TOOLS, OPEN_END, WHOLE, CHANNELS)


def read(marks: AnswerMarks, *texts: str, is_reasoning: bool = False) -> Pieces:
    parser = AnswerParser(marks, is_reasoning=is_reasoning)
    pieces = Pieces()
    for text in texts:
        pieces.add(parser.feed(text))
    pieces.add(parser.finish())
    return pieces


@pytest.mark.parametrize(
    ("marks", "text", "expected"),
    [
        (THINK, "just so", Pieces("just so")),
        (THINK, " \n", Pieces(" \n")),
        (THINK, "<think>\nhm\n\n so\n</think>\n\nyes \n", Pieces("yes \n", "hm\n\n so")),
        (THINK, "\n<think></think>yes", Pieces("yes")),
        (THINK, "<think>for ever ", Pieces("", "for ever ")),
        (THINK, "<think>a</think><think>b</think>c", Pieces("c", "ab")),
        (THINK, "what <think> means</think>", Pieces("what <think> means</think>")),
        (THINK, "<thi", Pieces("<thi")),
        (THINK, "<think>no</thin", Pieces("", "no</thin")),
        (TOOLS, '<call>{"f": 1}</call>', Pieces(calls=[WrittenCall("f", "1")])),
        (
            TOOLS,
            '<think>x</think>\nI look.\n<call>\n{"f": {}}\n</call>\n<call>{"g": []}</call>\n',
            Pieces("I look.", "x", [WrittenCall("f", "{}"), WrittenCall("g", "[]")]),
        ),
        (TOOLS, "so <call>{nonsense}</call> it is", Pieces("so <call>{nonsense}</call> it is")),
        (TOOLS, '<call>{"f": 1}', Pieces(calls=[WrittenCall("f", "1")])),
        (TOOLS, '<call>{"f"', Pieces('<call>{"f"')),
        (OPEN_END, 'Look:\n[CALL] {"f": 2}\n', Pieces("Look:", calls=[WrittenCall("f", "2")])),
        (WHOLE, ' {"f": 3}', Pieces(calls=[WrittenCall("f", "3")])),
        (WHOLE, '<|python|>{"f": 3}', Pieces(calls=[WrittenCall("f", "3")])),
        (WHOLE, '{"f": 3} is JSON', Pieces('{"f": 3} is JSON')),
        (WHOLE, 'JSON: {"f": 3}', Pieces('JSON: {"f": 3}')),
        (
            CHANNELS,
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>so",
            Pieces("so", "hm"),
        ),
        (CHANNELS, "<|channel|>final<|message|>so", Pieces("so")),
    ],
)
def test_the_parts_of_an_answer(marks: AnswerMarks, text: str, expected: Pieces) -> None:
    assert read(marks, text) == expected
    assert read(marks, *text) == expected


def test_reasoning_that_the_prompt_has_opened() -> None:
    assert read(THINK, "\nhm\n</think>\n\nyes", is_reasoning=True) == Pieces("yes", "hm")
    assert read(THINK, "cut off", is_reasoning=True) == Pieces("", "cut off")


def test_text_is_told_as_soon_as_it_is_sure() -> None:
    parser = AnswerParser(TOOLS, is_reasoning=True)
    told = [parser.feed(text) for text in ("a", " <", "b", " </thi", "nk>", "\n", "c", " ", "<c")]
    assert [(pieces.reasoning, pieces.content) for pieces in told] == [
        ("a", ""),
        ("", ""),
        (" <b", ""),
        ("", ""),
        ("", ""),
        ("", ""),
        ("", "c"),
        ("", ""),
        ("", ""),
    ]
    assert parser.finish() == Pieces(" <c")


words = st.sampled_from(
    [
        *(mark for marks in EVERY for mark in (marks.reasoning_open, *marks.dropped)),
        *("</think>", "<|end|>", "<call>", "</call>", "[CALL]", "{", '{"f": 1}', "<", "|>"),
        *(" ", "\n", "a", "bc", "think", "</"),
    ]
)
texts = st.lists(words, max_size=12).map("".join)


@given(marks=st.sampled_from(EVERY), text=texts, cuts=st.lists(st.integers(0, 60)), data=st.data())
def test_how_a_text_is_cut_changes_nothing(
    marks: AnswerMarks, text: str, cuts: list[int], data: st.DataObject
) -> None:
    is_reasoning = bool(marks.reasoning_open) and data.draw(st.booleans())
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [text[start:end] for start, end in pairwise(bounds)]
    whole = AnswerParser(marks, is_reasoning=is_reasoning)
    cut = AnswerParser(marks, is_reasoning=is_reasoning)
    first, second = whole.feed(text), Pieces()
    for part in parts:
        second.add(cut.feed(part))
    assert first == second  # not only at the end: another worker goes on from here
    assert whole.finish() == cut.finish()


@given(marks=st.sampled_from(EVERY), text=texts)
def test_nothing_is_lost_but_marks_and_blanks(marks: AnswerMarks, text: str) -> None:
    """Of answers without reasoning and calls, whose pieces stand in their order."""
    pieces = read(marks, text)
    if pieces.calls or pieces.reasoning:
        return
    left, kept = ("".join(each.split()) for each in (text, pieces.content))
    for mark in (*marks.dropped, marks.reasoning_open, marks.reasoning_close):
        if mark:
            left, kept = left.replace(mark, ""), kept.replace(mark, "")
    assert kept == left
