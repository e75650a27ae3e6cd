"""Chat templates: from messages to the text of a prompt, with users' text kept apart.

Owns rendering, in a sandbox and with the conventions of Hugging Face's `apply_chat_template`, and
the promise that users' text never becomes control tokens. Knows no tokens.

How the promise is kept: where a message holds the text of a control token, an unguessable sentinel
takes its place while the template is rendered. Afterwards the text is cut at the sentinels: what
the template wrote may hold control tokens, what stood for a sentinel may not. A chat without such
text is one span, and its prompt is exactly what the template says.
"""

from __future__ import annotations

import datetime
import json
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import jinja2
import jinja2.ext

from openclawctl.wire.chat import CHAT_ROLES
from openclawctl.wire.errors import InvalidRequest, LimitExceeded, Problem, Unsupported
from openclawctl.wire.fields import texts_in
from openclawd.worker.quoting import shortened
from openclawd.worker.reasoning import history_field, marks_of
from openclawd.worker.template_sandbox import Sandbox, check_spacing, variables_of
from openclawd.worker.turns import FIELDS, Writing, turns_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from openclawctl.wire.chat import ChatMessage
    from openclawctl.wire.tools import Tool
    from openclawd.backends.base import ChatFormat

_SPARE_CHARS: Final = 1024 * 1024
_GROWTH: Final = 4
"""A prompt may have this many times its messages' characters, and some spare: a template that
repeats them without end must not fill the memory."""

_BEGIN: Final = "\ue000"
_END: Final = "\ue001"
"""Around a sentinel: private-use characters. Those of a message are covered as well, so that one
that is left over after the cut is a part of a sentinel."""

_NONCE_LIMIT: Final = 10**20
_EDGE_CHARS: Final = 2
"""Of a control token's text that is cut in two, one part has at least this many characters: these
texts have three or more."""

_USE_GENERATE: Final = "use generate with a prompt in the model's own format"


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a prompt. Only what the template wrote may hold control tokens."""

    text: str
    is_template: bool


class _Refusal(Exception):
    """The template called `raise_exception`."""


class ChatTemplate:
    """A model's template, compiled once. `problem` says why it has none that works, `variables` are
    those it asks for, `reasoning` are the marks that it mentions."""

    def __init__(self, chat_format: ChatFormat, control_texts: Iterable[str]) -> None:
        self._format = chat_format
        self._pattern = _control_pattern(control_texts)
        self._template: jinja2.Template | None = None
        self._history_field = history_field(chat_format.template or "")
        self.reasoning = marks_of(chat_format.template or "")
        self.variables: frozenset[str] = frozenset()
        self.problem = ""
        if chat_format.template is None:
            self.problem = "its file has no chat template"
            return
        environment = _environment()
        try:
            self.variables = variables_of(environment, chat_format.template)
            self._template = environment.from_string(chat_format.template)
        except Exception as error:  # it is a program from a file: its compiler can fail in any way
            self.problem = f"its chat template does not compile: {_story(error)}"

    @property
    def is_usable(self) -> bool:
        return self._template is not None

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Tool] = (),
        writing: Writing | None = None,
        asks: bool = True,
        **switches: Any,
    ) -> list[Span]:
        """The prompt that asks for the next turn, or without `asks` the chat so far. `writing` is
        how the template wants calls to be told; `switches` are variables of it. Raises a `Problem`
        if there is none."""
        if self._template is None:
            raise Unsupported(f"this model cannot chat: {self.problem}", hint=_USE_GENERATE)
        told = {
            "messages": turns_of(messages, self._history_field, writing or Writing()),
            # Templates ask `tools is not none`, which an undefined name passes.
            "tools": [tool.encode() for tool in tools] or None,
        }
        guard = self._guard(told)
        variables = {
            **{name: guard.cover(value) for name, value in told.items()},
            "add_generation_prompt": asks,
            "bos_token": self._format.bos_text,
            "eos_token": self._format.eos_text,
            "documents": None,
            **switches,
        }
        limit = _SPARE_CHARS + _GROWTH * sum(map(len, texts_in(told)))
        return guard.cut(self._without_added(_render(self._template, variables, limit)))

    def _guard(self, told: dict[str, Any]) -> _Guard:
        """One that covers nothing, unless there is something to cover."""
        if self._pattern is None or not any(map(self._pattern.search, texts_in(told))):
            return _Guard(None)
        return _Guard(re.compile(f"{self._pattern.pattern}|[{_BEGIN}{_END}]"))

    def _without_added(self, text: str) -> str:
        """Without what the tokenizer adds around every prompt, or it would stand there twice."""
        if self._format.adds_bos and self._format.bos_text:
            text = text.removeprefix(self._format.bos_text)
        if self._format.adds_eos and self._format.eos_text:
            text = text.removesuffix(self._format.eos_text)
        return text


class _Guard:
    """The sentinels of one rendering. Digits only: a template may change the case of a message."""

    def __init__(self, pattern: re.Pattern[str] | None) -> None:
        self._pattern = pattern
        self._nonce = f"{secrets.randbelow(_NONCE_LIMIT):020d}"
        self._covered: list[str] = []

    def cover(self, value: Any) -> Any:
        """What users wrote, with sentinels where control tokens would come out of it."""
        match value:
            case str():
                return self._pattern.sub(self._sentinel, value) if self._pattern else value
            case list():
                return [self.cover(item) for item in value]
            case dict():
                return {self._cover_key(key): self._cover_item(key, value[key]) for key in value}
            case _:
                return value

    def _cover_key(self, key: str) -> str:
        return key if key in FIELDS else str(self.cover(key))

    def _cover_item(self, key: str, item: Any) -> Any:
        return item if key == "role" and item in CHAT_ROLES else self.cover(item)

    def cut(self, text: str) -> list[Span]:
        if not self._covered:
            return [Span(text, is_template=True)]
        parts = re.split(f"{_BEGIN}{self._nonce}([0-9]+){_END}", text)
        if any(mark in part for part in parts for mark in (_BEGIN, _END, self._nonce)):
            raise InvalidRequest(
                "a message holds the text of a control token where the chat template cuts it",
                hint="leave out text such as <|im_start|> from the messages and tools",
            )
        spans = [
            Span(self._covered[int(part)] if number % 2 else part, is_template=number % 2 == 0)
            for number, part in enumerate(parts)
        ]
        return [span for span in spans if span.text]

    def _sentinel(self, match: re.Match[str]) -> str:
        self._covered.append(match[0])
        return f"{_BEGIN}{self._nonce}{len(self._covered) - 1}{_END}"


def _control_pattern(control_texts: Iterable[str]) -> re.Pattern[str] | None:
    """What must not come out of a message: control tokens' texts anywhere, and at a message's ends
    the parts of them that the neighbouring message could complete."""
    texts = sorted(set(control_texts), key=len, reverse=True)
    if not texts:
        return None
    whole = "|".join(map(re.escape, texts))
    heads = {text[:cut] for text in texts for cut in range(_EDGE_CHARS, len(text))}
    tails = {text[cut:] for text in texts for cut in range(1, len(text) - _EDGE_CHARS + 1)}
    patterns = [whole]
    if tails:
        patterns.append(rf"\A(?:{_longest_first(tails)})")
    if heads:
        patterns.append(rf"(?:{_longest_first(heads)})\Z")
    return re.compile("|".join(patterns))


def _longest_first(texts: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))


def _render(template: jinja2.Template, variables: dict[str, Any], limit: int) -> str:
    try:
        return _joined(template, variables, limit)
    except _Refusal as refusal:
        raise InvalidRequest(
            f"the model's chat template refuses these messages: {shortened(str(refusal))}",
            hint="check the order and the roles of the messages",
        ) from None
    except Problem:
        raise
    except Exception as error:  # a template is a program from a file: it can fail in any way
        raise Unsupported(
            f"the model's chat template fails on these messages: {_story(error)}",
            hint=_USE_GENERATE,
        ) from None


def _joined(template: jinja2.Template, variables: dict[str, Any], limit: int) -> str:
    parts, num_chars = [], 0
    for part in template.generate(variables):
        num_chars += len(part)
        if num_chars > limit:
            raise LimitExceeded(
                f"the model's chat template makes more than {limit} characters of these messages",
                hint=_USE_GENERATE,
            )
        parts.append(part)
    return "".join(parts)


def _story(error: Exception) -> str:
    """What went wrong in a template, in words. An error may quote all of the template."""
    return shortened(f"{type(error).__name__}: {error}")


def _environment() -> Sandbox:
    """As transformers 5 makes it (`utils/chat_template_utils.py`), which is what templates are
    written against."""
    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks an assistant's words for training; here they are just words."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - templates pass these by place, too
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """Unlike jinja2's own, which escapes for HTML."""
    check_spacing(indent, *(separators or ()))
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise _Refusal(str(message))  # here, where its failing is the template's


def _strftime_now(layout: str) -> str:
    return datetime.datetime.now().astimezone().strftime(layout)
