"""How a chat template tells of tools: asked of the template itself, once.

Owns the probe: a chat with one tool and one call of it, rendered in the few ways in which templates
want it, and compared with a turn that has no call. What the call looks like is `tool_format.py`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from os.path import commonprefix
from typing import TYPE_CHECKING, Final

from openclawctl.wire.chat import ChatMessage
from openclawctl.wire.errors import Problem, Unsupported
from openclawd.worker.tool_format import PROBE, PROBE_CALL, ToolFormat, learn
from openclawd.worker.turns import Writing

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from openclawd.worker.template import ChatTemplate

_USER: Final = ChatMessage("user", "Hello.")
_PLAIN: Final = ChatMessage("assistant", "Good morning to you.")
_CALLING: Final = ChatMessage("assistant", "", tool_calls=[PROBE_CALL])
_WRITINGS: Final = tuple(
    Writing(arguments_are_text=is_text, content_is_none=is_none)
    for is_none, is_text in product((False, True), repeat=2)
)


@dataclass(frozen=True, slots=True)
class ToolTelling:
    """How a model's calls are written, and how its template wants to be told of them."""

    format: ToolFormat
    writing: Writing


def learn_tools(template: ChatTemplate, end_texts: Collection[str]) -> ToolTelling:
    """`end_texts` are those of tokens that end an answer. Raises `Unsupported` with the reason."""
    if PROBE.name not in _text(template, [_USER], Writing(), asks=True):
        raise _cannot("its chat template does not tell it of tools")
    reason = "it writes calls in a way that this version cannot read"
    for writing in _WRITINGS:
        try:
            called = _text(template, [_USER, _CALLING], writing)
            plain = _text(template, [_USER, _PLAIN], writing)
        except Problem as problem:
            reason = problem.message
            continue
        head, _, tail = plain.partition(_PLAIN.content)
        written = _without_end(called[_common(head, called) :], tail, end_texts)
        plain_turn = plain[_common(head, called) :]
        if (learnt := learn(written, template.reasoning, plain=plain_turn)) is not None:
            return ToolTelling(learnt, writing)
    raise _cannot(reason)


def _text(
    template: ChatTemplate, messages: Sequence[ChatMessage], writing: Writing, *, asks: bool = False
) -> str:
    spans = template.render(messages, tools=[PROBE], writing=writing, asks=asks)
    return "".join(span.text for span in spans)


def _common(first: str, second: str) -> int:
    """Length of what two texts begin with alike, up to a tag that is not whole."""
    length = len(commonprefix([first, second]))  # noqa: RUF071 - of characters is what is wanted
    for opens, closes in ("<>", "[]"):
        start = second.rfind(opens, 0, length)
        if start >= 0 and closes not in second[start:length]:
            length = start
    return length


def _without_end(written: str, tail: str, end_texts: Collection[str]) -> str:
    """Without what ends every turn; and where a token would end an answer, this one ends, too."""
    written = written.removesuffix(tail) if tail else written
    ends = (written.find(text) for text in end_texts)
    return written[: min((end for end in ends if end >= 0), default=len(written))]


def _cannot(reason: str) -> Unsupported:
    return Unsupported(
        f"this model cannot call tools: {reason}",
        hint="leave out 'tools', or use another model",
    )
