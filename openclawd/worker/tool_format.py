"""How a model writes tool calls, learnt from its own chat template.

Owns the way from a call that a template wrote to a format that reads such calls back, and that has
them written. Pure: text in, calls out. Knows no template and no tokens.

There are dozens of formats, and most are of three styles: JSON with the name in it, the name with
JSON after it, and tags around every argument. So the template is given a call of the tool `PROBE`
to write, and where its name and arguments come out shows the rest.
"""

from __future__ import annotations

import enum
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.tools import Tool, ToolCall
from openclawd.worker.answer import AnswerMarks, AnswerParser, CallMarks, Pieces, WrittenCall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_TEXT: Final = "probe_text"
_NUMBER: Final = "probe_number"
_WORDS: Final = "some words"

PROBE: Final = Tool(
    "probe_tool",
    "A tool.",
    {
        "type": "object",
        "properties": {
            _TEXT: {"type": "string", "description": "A text."},
            _NUMBER: {"type": "integer", "description": "A number."},
        },
        "required": [_TEXT, _NUMBER],
    },
)
PROBE_CALL: Final = ToolCall("abcdefgh1", PROBE.name, json.dumps({_TEXT: _WORDS, _NUMBER: 42}))
"""Mistral's templates want an id of nine letters and digits."""

_PROBE_WRITTEN: Final = WrittenCall(PROBE_CALL.name, PROBE_CALL.arguments)

_JSON: Final = re.compile(rf'{{\s*"{_TEXT}"\s*:\s*"{_WORDS}"\s*,\s*"{_NUMBER}"\s*:\s*42\s*}}')
_FIRST_TAG: Final = re.compile(r"\s*(<[^<>]*>|\[[A-Z_]+\])")
_TAG: Final = re.compile(r"<[^<>]*>|\[[A-Z_]+\]|>")
_PIECE_ENDS: Final = re.compile(r"\s+|(?<=>)")
_SCAFFOLD: Final = re.compile(r"<[^<>]*>|\[\w+\]|[\s:,;\[\]\d]")
"""What may stand between calls and be lost: tags, numbers and separators."""

_MIN_OPEN_CHARS: Final = 2
_NAME_KEYS: Final = ("name", "tool_name")
_ARGUMENT_KEYS: Final = ("arguments", "parameters")
_DECODER: Final = json.JSONDecoder()


class Style(enum.Enum):
    JSON = "json"
    NAMED = "named"
    TAGGED = "tagged"


@dataclass(frozen=True, slots=True)
class Tags:
    """What stands around each argument of a tagged call: before its name, between name and value,
    and after the value."""

    before: str
    middle: str
    after: str


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A call is written as `before`, the name, `middle`, the arguments and `after`; `open` begins
    it and `close` ends it, if anything does. Without an `open`, JSON begins the answer."""

    style: Style
    before: str
    middle: str
    after: str
    open: str
    close: str
    tags: Tags | None = None

    @property
    def end(self) -> str:
        """What is written after the arguments of a single call."""
        return self.after[: self.after.rfind(self.close) + len(self.close)]

    def texts(self) -> tuple[str, ...]:
        """Everything that is written beside names and arguments."""
        tags = (self.tags.before, self.tags.middle, self.tags.after) if self.tags else ()
        return (self.before, self.middle, self.after, self.open, *tags)

    def marks(self, tools: Iterable[Tool], also: tuple[str, ...] = ()) -> CallMarks:
        """For answers with calls of these tools; `also` are further texts that open them."""
        by_name = {tool.name: tool for tool in tools}

        def parse(body: str, is_closed: bool) -> list[WrittenCall] | None:  # noqa: FBT001
            if self.style is Style.TAGGED and not is_closed:
                return None  # what was cut off may look whole, and would be another call
            return _READERS[self.style](self, body, by_name)

        if not self.open:
            return CallMarks(also, ("{", "["), self.close, parse, keeps_first=True)
        is_tag = self.open[0] in "<["
        opens = (self.open, *also) if is_tag else also
        return CallMarks(opens, () if is_tag else (self.open,), self.close, parse)


def learn(written: str, marks: AnswerMarks, *, plain: str) -> ToolFormat | None:
    """The format of an assistant's turn with `PROBE_CALL` in it, without what begins and ends every
    turn; `plain` is a turn without a call. None when the format cannot be made out, or would not be
    read back, or begins as other turns do."""
    written = _without_reasoning(written, marks)
    found = _JSON.search(written)
    learnt = _with_json(written, found) if found else _tagged(written)
    if learnt is None or (learnt.open and learnt.open in plain):
        return None
    parser = AnswerParser(AnswerMarks(calls=learnt.marks([PROBE])), is_reasoning=False)
    pieces = parser.feed(written)
    pieces.add(parser.finish())
    return learnt if pieces == Pieces(calls=[_PROBE_WRITTEN]) else None


# ---- learning ----


def _without_reasoning(written: str, marks: AnswerMarks) -> str:
    """From behind the mark, if there is one before the call."""
    close, name = marks.reasoning_close, max(written.find(PROBE.name), 0)
    start = written.rfind(close, 0, name) if close else -1
    return written[start + len(close) :] if start >= 0 else written


def _with_json(written: str, arguments: re.Match[str]) -> ToolFormat | None:
    """A call with its arguments in JSON: is the name in JSON, too?"""
    name = written.rfind(PROBE.name, 0, arguments.start())
    if name < 0:
        return None
    before, middle = written[:name], written[name + len(PROBE.name) : arguments.start()]
    after = written[arguments.end() :]
    for start in (index for index, char in enumerate(before) if char in "[{"):
        _, end = _value_at(written, start)
        if end > name:
            opens, close = before[:start].strip(), _close(written[end:])
            return ToolFormat(Style.JSON, before, middle, after, opens, close)
    return _checked(ToolFormat(Style.NAMED, before, middle, after, _open(before), _close(after)))


def _tagged(written: str) -> ToolFormat | None:
    """A call with tags around its name and each of its arguments."""
    pieces = re.split("|".join((PROBE.name, _TEXT, _WORDS, _NUMBER, r"\b42\b")), written)
    if len(pieces) != 6:
        return None
    before, middle, between, next_before, last_between, after = pieces
    tag_before = _common_end(middle, next_before)
    tag_after = next_before.removesuffix(tag_before)
    if between != last_between or not after.startswith(tag_after) or not tag_after.strip():
        return None
    tags = Tags(tag_before, between, tag_after)
    middle, after = middle.removesuffix(tag_before), after.removeprefix(tag_after)
    opens, close = _open(before), _close(after)
    return _checked(ToolFormat(Style.TAGGED, before, middle, after, opens, close, tags))


def _checked(learnt: ToolFormat) -> ToolFormat | None:
    return learnt if len(learnt.open) >= _MIN_OPEN_CHARS else None


def _open(before: str) -> str:
    """The tag with which calls begin, or all there is before a name."""
    tag = _FIRST_TAG.match(before)
    return tag[1] if tag else before.strip()


def _close(after: str) -> str:
    """The last tag, or all there is, if anything."""
    tags = _TAG.findall(after)
    return tags[-1] if tags else after.strip()


def _common_end(first: str, second: str) -> str:
    length = 0
    while length < min(len(first), len(second)) and first[-1 - length] == second[-1 - length]:
        length += 1
    return first[len(first) - length :]


# ---- reading ----


def _read_json(
    learnt: ToolFormat, body: str, tools: Mapping[str, Tool]
) -> list[WrittenCall] | None:
    """One or more JSON values, each a call or a list of calls."""
    calls: list[WrittenCall] = []
    position = 0
    while text := body[position:].lstrip(" \n\r\t,;"):
        position = len(body) - len(text)
        value, position = _value_at(body, position)
        if position < 0:
            return calls if calls and not _says_something(learnt, text) else None
        for item in value if isinstance(value, list) else [value]:
            call = _call_of(item, tools)
            if call is None:
                return None
            calls.append(call)
    return calls or None


def _call_of(item: Any, tools: Mapping[str, Tool]) -> WrittenCall | None:
    """`{"name": …, "arguments": …}` by whichever keys, or `{name: arguments}`."""
    if not isinstance(item, dict):
        return None
    if isinstance(function := item.get("function"), dict):
        item = function
    name: Any = next((item[key] for key in _NAME_KEYS if key in item), None)
    if name is None and len(item) == 1:
        ((name, arguments),) = item.items()
    else:
        arguments = next((item[key] for key in _ARGUMENT_KEYS if key in item), {})
    if isinstance(arguments, str):
        arguments, _ = _value_at(arguments, 0)
    if not isinstance(name, str) or name not in tools or not isinstance(arguments, dict):
        return None
    return _written(name, arguments)


def _read_named(
    learnt: ToolFormat, body: str, tools: Mapping[str, Tool]
) -> list[WrittenCall] | None:
    """Names of tools, each with JSON after it."""
    tags = _TAG.findall(learnt.middle)
    calls: list[WrittenCall] = []
    position = 0
    while found := _names(tools).search(body, position):
        start = body.find("{", found.end())
        middle = body[found.end() : start]
        is_next = tags[-1] in middle if tags else not middle.strip()
        if start < 0 or not is_next or _says_something(learnt, body[position : found.start()]):
            return None
        value, position = _value_at(body, start)
        if not isinstance(value, dict):
            return None
        calls.append(_written(found[0], value))
    return calls if calls and not _says_something(learnt, body[position:]) else None


def _read_tagged(
    learnt: ToolFormat, body: str, tools: Mapping[str, Tool]
) -> list[WrittenCall] | None:
    """Names of tools, each with tags around its arguments after it."""
    calls: list[WrittenCall] = []
    position = 0
    while found := _names(tools).search(body, position):
        if _says_something(learnt, body[position : found.start()]):
            return None
        arguments, position = _tagged_arguments(learnt, body, found.end(), tools[found[0]])
        calls.append(_written(found[0], arguments))
    return calls if calls and not _says_something(learnt, body[position:]) else None


def _tagged_arguments(
    learnt: ToolFormat, body: str, position: int, tool: Tool
) -> tuple[dict[str, Any], int]:
    """The arguments from `position` on, and where they end."""
    assert learnt.tags is not None
    tags, properties = learnt.tags, tool.parameters.get("properties")
    arguments: dict[str, Any] = {}
    position = _past(body, position, learnt.middle) or position
    while (start := _past(body, position, tags.before)) is not None:
        key_end, value_start = _next(body, start, tags.middle)
        value_end, position = _next(body, value_start, tags.after)
        key, value = body[start:key_end].strip(), body[value_start:value_end]
        schema = properties.get(key) if isinstance(properties, dict) else None
        arguments[key] = _typed(value, schema)
    return arguments, position


def _typed(value: str, schema: Any) -> Any:
    """A value that stands between tags: text where text is wanted, otherwise JSON if it is some."""
    wanted = schema.get("type") if isinstance(schema, dict) else None
    types = wanted if isinstance(wanted, list) else [wanted]
    if "string" in types and not ("null" in types and value.strip() == "null"):
        return value
    decoded, end = _value_at(value.strip(), 0)
    return decoded if end == len(value.strip()) else value


_READERS: Final[dict[Style, Callable[..., list[WrittenCall] | None]]] = {
    Style.JSON: _read_json,
    Style.NAMED: _read_named,
    Style.TAGGED: _read_tagged,
}


def _names(tools: Mapping[str, Tool]) -> re.Pattern[str]:
    longest_first = sorted(tools, key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, longest_first))})(?![\w-])")


def _says_something(learnt: ToolFormat, filler: str) -> bool:
    """Is there more in a text than what the format puts between calls?"""
    pieces = {
        piece
        for text in (learnt.before, learnt.middle, learnt.after)
        for piece in _PIECE_ENDS.split(text)
        if piece
    }
    for piece in sorted(pieces, key=len, reverse=True):
        filler = filler.replace(piece, "")
    return bool(_SCAFFOLD.sub("", filler))


def _past(text: str, position: int, literal: str) -> int | None:
    """Where a text goes on after a literal that is there, give or take blank space."""
    if text.startswith(literal, position):
        return position + len(literal)
    pattern = r"\s*".join(map(re.escape, literal.split()))
    found = re.compile(rf"\s*{pattern}\s*").match(text, position)
    return found.end() if found else None


def _next(text: str, position: int, literal: str) -> tuple[int, int]:
    """Where a literal comes next, and where the text goes on: its blank space belongs to it where
    that is there. The end of the text if it does not come."""
    core = literal.strip()
    start = text.find(core, position)
    if start < 0:
        return len(text), len(text)
    end = start + len(core)
    lead = literal[: literal.index(core)]
    trail = literal[len(lead) + len(core) :]
    if text.endswith(lead, position, start):
        start -= len(lead)
    return start, end + len(trail) if text.startswith(trail, end) else end


def _written(name: str, arguments: dict[str, Any]) -> WrittenCall:
    return WrittenCall(name, json.dumps(arguments, ensure_ascii=False))


def _value_at(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins here, and where it ends; at -1 if there is none."""
    try:
        return _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, -1
