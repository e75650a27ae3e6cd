"""The turns of a chat as chat templates take them.

Owns the names of their fields, which are those of Hugging Face's `apply_chat_template`, and the
ways in which templates differ about tool calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from openclawctl.wire.chat import ChatMessage
    from openclawctl.wire.tools import ToolCall


FIELDS: Final = frozenset(
    {"role", "content", "tool_calls", "tool_call_id", "id", "type", "function", "name", "arguments"}
    | {"description", "parameters"}
)
"""What templates look for, in turns and tools; a template would not find it under another name."""


@dataclass(frozen=True, slots=True)
class Writing:
    """How a template wants the arguments of a call, and a turn that has calls and no content."""

    arguments_are_text: bool = False
    content_is_none: bool = False


def turns_of(
    messages: Sequence[ChatMessage], reasoning_field: str, writing: Writing
) -> list[dict[str, Any]]:
    """The maps for a template. Raises `InvalidRequest` for arguments that are no JSON object."""
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return [_turn(message, reasoning_field, writing, names) for message in messages]


def _turn(
    message: ChatMessage, reasoning_field: str, writing: Writing, names: dict[str, str]
) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        turn[reasoning_field] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = _calls(message.tool_calls, writing)
        if writing.content_is_none and not message.content:
            turn["content"] = None
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    if name := message.name or names.get(message.tool_call_id, ""):
        turn["name"] = name
    return turn


def _calls(calls: Iterable[ToolCall], writing: Writing) -> list[dict[str, Any]]:
    return [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": _arguments(call, writing)},
        }
        for call in calls
    ]


def _arguments(call: ToolCall, writing: Writing) -> str | dict[str, Any]:
    if writing.arguments_are_text:
        return call.arguments
    arguments = call.parsed
    if arguments is None:
        raise InvalidRequest(
            f"the arguments of a call of {call.name} are not the text of a JSON object",
            hint="send the tool calls of an answer back as they came",
        )
    return arguments
