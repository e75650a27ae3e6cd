"""Tools that a chat's model may call, and the calls it makes.

Owns their fields, which are those of OpenAI's chat completions, and what of them is allowed.

Invariant: `decode(encode(x)) == x`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.formats import schema_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from openclawctl.wire.fields import Fields

MAX_TOOLS: Final = 128
MAX_TOOL_CALLS: Final = 128
MAX_CALL_ID_CHARS: Final = 256

TOOL_CHOICES: Final = ("auto", "none", "required")

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. `parameters` is the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def decode(cls, source: Fields) -> Tool:
        source.choice("type", ("function",), default="function")
        function = source.nested(source.mapping("function"), "function")
        if function.has("parameters"):
            schema_text(function, "parameters")  # JSON, and not too long
        return cls(
            name=decode_tool_name(function),
            description=function.text_or_none("description") or "",
            parameters=function.mapping("parameters"),
        )

    def encode(self) -> dict[str, Any]:
        function: dict[str, Any] = {"name": self.name}
        if self.description:
            function["description"] = self.description
        if self.parameters:
            function["parameters"] = self.parameters
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model makes. `arguments` is the text of a JSON object."""

    id: str
    name: str
    arguments: str

    @classmethod
    def decode(cls, source: Fields) -> ToolCall:
        source.choice("type", ("function",), default="function")
        function = source.nested(source.mapping("function"), "function")
        is_text = function.is_text("arguments") or not function.has("arguments")
        return cls(
            id=source.text_or_none("id", max_chars=MAX_CALL_ID_CHARS) or "",
            name=decode_tool_name(function),
            arguments=(function.text_or_none("arguments") or "{}")
            if is_text
            else schema_text(function, "arguments"),
        )

    def encode(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}

    @property
    def parsed(self) -> dict[str, Any] | None:
        """The arguments as a map; None when they are not the text of a JSON object."""
        import json  # here: see `formats.py`

        try:
            arguments = json.loads(self.arguments)
        except (ValueError, RecursionError):
            return None
        return arguments if isinstance(arguments, dict) else None


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the model may call a tool, must, or must call this one (`name`)."""

    mode: str = "auto"
    name: str = ""

    @classmethod
    def decode(cls, source: Fields) -> ToolChoice:
        if not source.has("tool_choice"):
            return cls()
        if not source.is_map("tool_choice"):
            return cls(source.choice("tool_choice", TOOL_CHOICES, default=""))
        choice = source.nested(source.mapping("tool_choice"), "tool_choice")
        if choice.has("function"):
            choice = choice.nested(choice.mapping("function"), "tool_choice")
        return cls("required", decode_tool_name(choice))

    def encode(self) -> str | dict[str, str]:
        return {"name": self.name} if self.name else self.mode


def decode_tools(source: Fields) -> list[Tool]:
    """The `tools` of a request."""
    values = source.items("tools", max_items=MAX_TOOLS)
    tools = [
        Tool.decode(source.nested(value, f"tools[{number}]")) for number, value in enumerate(values)
    ]
    if len({tool.name for tool in tools}) < len(tools):
        raise source.fail("two of the 'tools' have the same name")
    return tools


def decode_tool_calls(source: Fields) -> list[ToolCall]:
    """The field `tool_calls` of a message or a delta; empty where there is none."""
    values = source.items("tool_calls", max_items=MAX_TOOL_CALLS)
    return [ToolCall.decode(source.nested(value, "tool_calls")) for value in values]


def encode_tool_calls(calls: Iterable[ToolCall]) -> list[dict[str, Any]]:
    return [call.encode() for call in calls]


def decode_tool_name(source: Fields) -> str:
    """The `name` of a tool: letters, digits, `_`, `.` and `-`."""
    name = source.text("name")
    if not _NAME.fullmatch(name):
        raise source.fail("'name' must have 1 to 64 letters, digits, '_', '.' or '-'")
    return name
