"""The grammar of an answer that must be a tool call, as its model writes them.

Owns how a `ToolFormat` becomes Lark. Pure. That a call follows the schema of its tool is what the
grammar is for: a model that must call cannot be asked to get the arguments right by itself.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from openclawd.worker.grammar import WHITESPACE, check_multiples, grammar_text, lark_text
from openclawd.worker.tool_format import Style

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from openclawctl.wire.tools import Tool
    from openclawd.worker.tool_format import Tags, ToolFormat

_NO_ARGUMENTS: Final[dict[str, Any]] = {"properties": {}}


def call_grammar(
    learnt: ToolFormat, tools: Iterable[Tool], tokens: Mapping[str, int], *, before: str
) -> str:
    """One call of one of these tools, after what `before` allows (see `grammar_of`). Raises
    `LimitExceeded`."""
    rules = _Rules(tokens)
    calls = " | ".join(_call(learnt, tool, rules) for tool in tools)
    start = "before call" if before else "call"
    lines = [f"start: {start}", f"call: {calls}", *rules.lines, *([before] if before else [])]
    return grammar_text({"lark_grammar": "\n".join(lines)})


class _Rules:
    """Texts and schemas as Lark; a rule of its own where one is needed, in `lines`."""

    def __init__(self, tokens: Mapping[str, int]) -> None:
        self._tokens = tokens
        self.lines: list[str] = []

    def text(self, text: str) -> str:
        return lark_text(text, self._tokens)

    def json(self, schema: Mapping[str, Any]) -> str:
        text = json.dumps({"x-guidance": {"whitespace_pattern": WHITESPACE}, **schema})
        check_multiples(text, field="tools")
        return f"%json {text}"

    def text_until(self, end: str, schema: Mapping[str, Any]) -> str:
        """A text of the length that its schema allows, up to and with `end`."""
        low, high = _whole(schema.get("minLength")) or 0, _whole(schema.get("maxLength"))
        pattern = f"/(?s:.{{{low},{'' if high is None else high}}})/"
        name = f"until_{len(self.lines)}"
        if any(text in end for text in self._tokens):
            self.lines.append(f"{name}: {name.upper()} {self.text(end)}")
            self.lines.append(f"{name.upper()}: {pattern}")
        else:
            self.lines.append(f"{name}[suffix={json.dumps(end)}]: {pattern}")
        return name


def _call(learnt: ToolFormat, tool: Tool, rules: _Rules) -> str:
    schema = {"type": "object", "additionalProperties": False, **(tool.parameters or _NO_ARGUMENTS)}
    if learnt.style is Style.TAGGED:
        assert learnt.tags is not None
        arguments = _tagged_arguments(learnt.tags, schema, rules)
    else:
        arguments = rules.json(schema)
    texts = (learnt.before, tool.name, learnt.middle)
    return " ".join([*map(rules.text, texts), arguments, rules.text(learnt.end)])


def _tagged_value(tags: Tags, schema: Mapping[str, Any], rules: _Rules) -> str:
    """Text stands there as it is, anything else as JSON."""
    choices = schema.get("enum")
    is_text = isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)
    if is_text and choices:
        return f"({' | '.join(map(rules.text, choices))}) {rules.text(tags.after)}"
    if schema.get("type") == "string":
        return rules.text_until(tags.after, schema)
    return f"{rules.json(schema)} {rules.text(tags.after)}"


def _tagged_arguments(tags: Tags, schema: Mapping[str, Any], rules: _Rules) -> str:
    """Every property in its order; those that are not required may be left out."""
    properties, required = schema.get("properties"), schema.get("required")
    parts = []
    for name, wanted in (properties if isinstance(properties, dict) else {}).items():
        content = _tagged_value(tags, wanted if isinstance(wanted, dict) else {}, rules)
        part = f"{rules.text(tags.before)} {rules.text(name)} {rules.text(tags.middle)} {content}"
        is_required = isinstance(required, list) and name in required
        parts.append(part if is_required else f"({part})?")
    return " ".join(parts)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None
