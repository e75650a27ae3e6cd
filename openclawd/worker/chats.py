"""From a chat to its prompt, and to how the answer to it is read.

Owns what a request's `reasoning`, `tools` and `tool_choice` mean for a model's template. How a
template is rendered is `template.py`'s, which marks there are `reasoning.py`'s and
`tool_format.py`'s.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import Unsupported
from openclawd.worker.answer import AnswerMarks, AnswerParser
from openclawd.worker.grammar import lark_text
from openclawd.worker.reasoning import HARMONY_CALLS, off_switches
from openclawd.worker.template import ChatTemplate
from openclawd.worker.tool_grammar import call_grammar
from openclawd.worker.tool_template import ToolTelling, learn_tools

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from openclawctl.wire.completion import ChatParams
    from openclawd.backends.base import Backend
    from openclawd.worker.template import Span

_PYTHON_TAG: Final = "<|python_tag|>"
"""Llama 3 may put this before a call in JSON."""


@dataclass(frozen=True, slots=True)
class AnswerReading:
    """How a chat's answers are read. `is_reasoning`: the prompt has opened the reasoning already.
    `tokens` are the control tokens in the marks, by their texts, whose text counts therefore.
    `before` is what may come before an answer with a grammar of its own (`grammar_of`), `calls` the
    grammar of answers that must be calls."""

    marks: AnswerMarks
    is_reasoning: bool
    tokens: Mapping[str, int]
    before: str = ""
    calls: str = ""

    @property
    def shown(self) -> dict[int, bytes]:
        return {token: text.encode() for text, token in self.tokens.items()}

    def parser(self) -> AnswerParser | None:
        """For one answer. None when it is what the model writes, as it stands."""
        if self.marks == AnswerMarks():
            return None
        return AnswerParser(self.marks, is_reasoning=self.is_reasoning)


class Chats:
    """The chats of one model. Belongs to the tokeniser thread."""

    def __init__(self, template: ChatTemplate, backend: Backend) -> None:
        self._plain = template
        self._backend = backend
        self._with_tools: ChatTemplate | None = None
        self._telling: ToolTelling | None = None

    def render(self, params: ChatParams) -> tuple[list[Span], AnswerReading]:
        """The prompt of a chat, and how the answers to it are read. Raises a `Problem`."""
        tools = params.tools if params.tool_choice.mode != "none" else []
        if not tools and not any(message.tool_calls for message in params.messages):
            spans = self._plain.render(params.messages, **_switches(self._plain, params))
            return spans, self._reading(self._plain, params, spans)
        template, telling = self._for_tools()
        switches = _switches(template, params)
        spans = template.render(params.messages, tools=tools, writing=telling.writing, **switches)
        reading = self._reading(template, params, spans)
        return spans, self._reading_calls(reading, params, telling) if tools else reading

    def _for_tools(self) -> tuple[ChatTemplate, ToolTelling]:
        """The template for chats with tools, of which some models have one of its own."""
        if self._with_tools is None or self._telling is None:
            chat_format = self._backend.chat_format
            template = self._plain
            if chat_format.tool_template is not None:
                of_tools = replace(chat_format, template=chat_format.tool_template)
                template = ChatTemplate(of_tools, self._backend.control_texts)
            self._telling = learn_tools(template, self._end_texts())
            self._with_tools = template
        return self._with_tools, self._telling

    # ---- reading ----

    def _reading(
        self, template: ChatTemplate, params: ChatParams, spans: list[Span]
    ) -> AnswerReading:
        marks = template.reasoning
        tokens = self._control_tokens(
            [marks.reasoning_open, marks.reasoning_again, marks.reasoning_close, *marks.dropped]
        )
        end = "".join(span.text for span in spans[-1:]).rstrip()
        is_reasoning = bool(marks.reasoning_open) and end.endswith(marks.reasoning_open)
        has_reasoned = bool(marks.reasoning_close) and end.endswith(marks.reasoning_close)
        before = ""
        if marks.reasoning_open and not (has_reasoned or params.reasoning == "off"):
            before = lark_before(marks, tokens, is_reasoning=is_reasoning)
        if params.reasoning == "raw":
            return AnswerReading(AnswerMarks(), is_reasoning=False, tokens=tokens, before=before)
        return AnswerReading(marks, is_reasoning, tokens, before)

    def _reading_calls(
        self, reading: AnswerReading, params: ChatParams, telling: ToolTelling
    ) -> AnswerReading:
        """With the calls of a chat's tools."""
        learnt, choice = telling.format, params.tool_choice
        dropped = reading.marks.dropped if learnt.open else (*reading.marks.dropped, _PYTHON_TAG)
        also = HARMONY_CALLS if HARMONY_CALLS[0].endswith(f" {learnt.open}") else ()
        calls = learnt.marks(params.tools, also)
        tokens = {**reading.tokens, **self._control_tokens([*learnt.texts(), *also, *dropped])}
        grammar = ""
        if choice.mode == "required":
            wanted = [tool for tool in params.tools if choice.name in ("", tool.name)]
            grammar = call_grammar(learnt, wanted, tokens, before=reading.before)
        marks = replace(reading.marks, calls=calls, dropped=dropped)
        return replace(reading, marks=marks, tokens=tokens, calls=grammar)

    def _control_tokens(self, texts: Iterable[str]) -> dict[str, int]:
        """The control tokens in these texts, but for those that end an answer anyway."""
        wanted = list(texts)
        named = {
            text for text in self._backend.control_texts if any(text in each for each in wanted)
        }
        tokens = {text: self._token(text) for text in named}
        return {text: token for text, token in tokens.items() if not self._backend.is_end(token)}

    def _end_texts(self) -> list[str]:
        texts = self._backend.control_texts
        return [text for text in texts if self._backend.is_end(self._token(text))]

    def _token(self, control_text: str) -> int:
        return self._backend.tokenize(control_text, add_special=False, parse_special=True)[0]


def _switches(template: ChatTemplate, params: ChatParams) -> dict[str, Any]:
    """The variables that turn reasoning off, if that is asked for. Raises `Unsupported`."""
    if params.reasoning != "off" or not template.reasoning.reasoning_open:
        return {}
    switches = off_switches(template.variables)
    if not switches:
        raise Unsupported(
            "the chat template of this model has no switch that turns reasoning off",
            hint="leave out 'reasoning': it is then split from the answer",
        )
    return switches


def lark_before(marks: AnswerMarks, tokens: Mapping[str, int], *, is_reasoning: bool) -> str:
    """Reasoning, and marks that mean nothing, as the rule `before` in Lark."""
    lead = " ".join(f"({lark_text(mark, tokens)})?" for mark in marks.dropped)
    if marks.reasoning_close in tokens:
        thought = f"TEXT {lark_text(marks.reasoning_close, tokens)}"
        rule = "TEXT: /(?s:.*)/"
    else:
        thought = "thought"
        rule = f"thought[suffix={json.dumps(marks.reasoning_close)}]: /(?s:.*)/"
    if not is_reasoning:
        thought = f"({lark_text(marks.reasoning_open, tokens)} {thought} BLANK)?"
    return f"before: {thought} BLANK {lead}\n{rule}\nBLANK: /\\s{{0,4}}/"
