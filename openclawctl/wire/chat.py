"""The turns of a chat, as `chat` takes them and as its result gives them.

Owns roles and the fields of a turn.

Invariant: `decode(encode(x)) == x`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import Unsupported
from openclawctl.wire.tools import (
    MAX_CALL_ID_CHARS,
    ToolCall,
    decode_tool_calls,
    encode_tool_calls,
)

if TYPE_CHECKING:
    from openclawctl.wire.fields import Fields

MAX_CHAT_MESSAGES: Final = 4096
MAX_PART_TYPE_CHARS: Final = 64
MAX_NAME_CHARS: Final = 256

CHAT_ROLES: Final = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a chat. Typed text parts were joined when it was decoded.

    Of an assistant's turn, `reasoning` is what it thought before it answered, and `tool_calls` are
    the tools it called; a tool's turn answers the call `tool_call_id`, of the tool `name`.
    """

    role: str
    content: str
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    tool_call_id: str = ""
    name: str = ""

    @classmethod
    def decode(cls, source: Fields) -> ChatMessage:
        role = source.choice("role", CHAT_ROLES, default="")
        if not role:
            raise source.fail(f"'role' is missing; allowed: {', '.join(CHAT_ROLES)}")
        calls = decode_tool_calls(source)
        is_empty = bool(calls) and not source.has("content")
        return cls(
            role=role,
            content="" if is_empty else _decode_content(source),
            reasoning=source.text_or_none("reasoning") or "",
            tool_calls=calls,
            tool_call_id=source.text_or_none("tool_call_id", max_chars=MAX_CALL_ID_CHARS) or "",
            name=source.text_or_none("name", max_chars=MAX_NAME_CHARS) or "",
        )

    def encode(self) -> dict[str, Any]:
        encoded: dict[str, Any] = {"role": self.role, "content": self.content}
        for name in ("reasoning", "tool_call_id", "name"):
            if value := getattr(self, name):
                encoded[name] = value
        if self.tool_calls:
            encoded["tool_calls"] = encode_tool_calls(self.tool_calls)
        return encoded


def decode_messages(source: Fields) -> list[ChatMessage]:
    """The `messages` of a request."""
    values = source.items("messages", max_items=MAX_CHAT_MESSAGES)
    if not values:
        raise source.fail("'messages' is empty; a chat needs at least one message")
    return [
        ChatMessage.decode(source.nested(value, f"messages[{number}]"))
        for number, value in enumerate(values)
    ]


def _decode_content(source: Fields) -> str:
    """A string, or typed parts of which only text is built."""
    if not source.is_list("content"):
        return source.text("content")
    texts = []
    for number, value in enumerate(source.items("content", max_items=MAX_CHAT_MESSAGES)):
        part = source.nested(value, f"content[{number}]")
        if (kind := part.text("type", max_chars=MAX_PART_TYPE_CHARS)) != "text":
            raise Unsupported(
                f"content[{number}] is of type {kind!r}; this version takes text only",
                hint="send the text parts alone",
            )
        texts.append(part.text("text"))
    return "".join(texts)
