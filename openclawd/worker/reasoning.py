"""Which models reason, and how their chat templates mark it.

Owns the table of marks and the switches of templates. Knows templates only as text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from openclawd.worker.answer import AnswerMarks

if TYPE_CHECKING:
    from collections.abc import Container

_KNOWN: Final = (
    AnswerMarks("<think>", "</think>"),  # Qwen, DeepSeek, GLM, SmolLM3, Nemotron, MiniMax
    AnswerMarks("[THINK]", "[/THINK]"),  # Mistral
    AnswerMarks("<seed:think>", "</seed:think>"),
    AnswerMarks("<mm:think>", "</mm:think>"),
    AnswerMarks("<thinking>", "</thinking>"),
    AnswerMarks("<|START_THINKING|>", "<|END_THINKING|>"),  # Command
    AnswerMarks("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    AnswerMarks("<|channel>thought", "<channel|>"),  # Gemma
    AnswerMarks(  # gpt-oss: every part of a turn is in a channel of its own
        "<|channel|>analysis<|message|>",
        "<|end|>",
        "<|start|>assistant<|channel|>analysis<|message|>",
        dropped=(
            "<|start|>assistant<|channel|>final<|message|>",
            "<|channel|>final<|message|>",
            "<|channel|>commentary<|message|>",
        ),
    ),
)

HARMONY_CALLS: Final = (
    "<|start|>assistant to=functions.",
    "<|start|>assistant<|channel|>commentary to=functions.",
    "<|channel|>commentary to=functions.",
)
"""How gpt-oss begins a call. Its template writes the first, or its end after the prompt's own."""

_OFF: Final[dict[str, Any]] = {"enable_thinking": False, "thinking": False, "thinking_budget": 0}
"""Variables by which templates turn reasoning off, with the value that does."""

_HISTORY: Final = ("reasoning_content", "thinking", "reasoning", "thought")
"""Names under which templates look for the reasoning of earlier turns, the commonest first."""


def marks_of(template: str) -> AnswerMarks:
    """The marks around reasoning that a template mentions; empty ones where it has none."""
    for marks in _KNOWN:
        if marks.reasoning_open in template and marks.reasoning_close in template:
            return marks
    return AnswerMarks()


def off_switches(variables: Container[str]) -> dict[str, Any]:
    """What to set, of the variables that a template asks for, to turn reasoning off."""
    return {name: value for name, value in _OFF.items() if name in variables}


def history_field(template: str) -> str:
    """The name under which a template wants to have the reasoning of an earlier turn."""
    asked = (name for name in _HISTORY if re.search(rf"[.'\"]{name}\b", template))
    return next(asked, _HISTORY[0])
