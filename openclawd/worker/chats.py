"""From a chat to its prompt, and to how the answer to it is read.

Owns what a request's `reasoning` means for a model's template. How a template is rendered is
`template.py`'s, which marks there are `reasoning.py`'s.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openclawctl.wire.errors import Unsupported
from openclawd.worker.answer import AnswerMarks, AnswerParser
from openclawd.worker.reasoning import off_switches

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openclawctl.wire.completion import ChatParams
    from openclawd.backends.base import Backend
    from openclawd.worker.template import ChatTemplate, Span


@dataclass(frozen=True, slots=True)
class AnswerReading:
    """How a chat's answers are read. `is_reasoning`: the prompt has opened the reasoning already.
    `tokens` are the control tokens in the marks, by their texts, whose text counts therefore."""

    marks: AnswerMarks
    is_split: bool
    is_reasoning: bool
    may_reason: bool
    tokens: Mapping[str, int]

    @property
    def shown(self) -> dict[int, bytes]:
        return {token: text.encode() for text, token in self.tokens.items()}

    def parser(self) -> AnswerParser | None:
        """For one answer. None when it is what the model writes, as it stands."""
        if not self.is_split or self.marks == AnswerMarks():
            return None
        return AnswerParser(self.marks, is_reasoning=self.is_reasoning)

    def lark_before(self) -> str:
        """What may come before an answer with a grammar of its own, as the rule `before` in Lark:
        reasoning, and marks that mean nothing. Empty when nothing may."""
        marks = self.marks
        lead = " ".join(f"({self._lark(mark)})?" for mark in marks.dropped)
        if not self.may_reason:
            return ""
        thought = f"TEXT {self._lark(marks.reasoning_close)}"
        rules = "TEXT: /(?s:.*)/"
        if marks.reasoning_close not in self.tokens:
            thought = "thought"
            rules = f"thought[suffix={json.dumps(marks.reasoning_close)}]: /(?s:.*)/"
        if not self.is_reasoning:
            thought = f"({self._lark(marks.reasoning_open)} {thought} BLANK)?"
        return f"before: {thought} BLANK {lead}\n{rules}\nBLANK: /\\s{{0,4}}/"

    def _lark(self, text: str) -> str:
        """A text in Lark. Control tokens are named by their ids, for their text would not do."""
        if not self.tokens:
            return json.dumps(text)
        parts = re.split(f"({'|'.join(map(re.escape, self.tokens))})", text)
        return " ".join(
            f"<[{self.tokens[part]}]>" if part in self.tokens else json.dumps(part)
            for part in parts
            if part
        )


class Chats:
    """The chats of one model. Belongs to the tokeniser thread."""

    def __init__(self, template: ChatTemplate, backend: Backend) -> None:
        self._template = template
        self._tokens = _control_tokens(template.reasoning, backend)

    def render(self, params: ChatParams) -> tuple[list[Span], AnswerReading]:
        """The prompt of a chat, and how the answers to it are read. Raises a `Problem`."""
        marks = self._template.reasoning
        is_off = params.reasoning == "off"
        switches = off_switches(self._template.variables) if is_off else {}
        if is_off and marks.reasoning_open and not switches:
            raise Unsupported(
                "the chat template of this model has no switch that turns reasoning off",
                hint="leave out 'reasoning': it is then split from the answer",
            )
        spans = self._template.render(params.messages, **switches)
        end = "".join(span.text for span in spans[-1:]).rstrip()
        is_reasoning = bool(marks.reasoning_open) and end.endswith(marks.reasoning_open)
        has_reasoned = bool(marks.reasoning_close) and end.endswith(marks.reasoning_close)
        may_reason = bool(marks.reasoning_open) and not (is_off or has_reasoned)
        is_split = params.reasoning != "raw"
        return spans, AnswerReading(marks, is_split, is_reasoning, may_reason, self._tokens)


def _control_tokens(marks: AnswerMarks, backend: Backend) -> dict[str, int]:
    """The control tokens of which marks are made, but for those that end an answer anyway."""
    texts = [marks.reasoning_open, marks.reasoning_close, *marks.dropped]
    named = {text for text in backend.control_texts if any(text in mark for mark in texts)}
    tokens = {
        text: backend.tokenize(text, add_special=False, parse_special=True)[0] for text in named
    }
    return {text: token for text, token in tokens.items() if not backend.is_end(token)}
