"""The turns of a chat, as `chat` takes them and as its result gives them.

Owns roles and the fields of a turn.

Invariant: `decode(encode(x)) == x`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import Unsupported

if TYPE_CHECKING:
    from openclawctl.wire.fields import Fields

MAX_CHAT_MESSAGES: Final = 4096
MAX_PART_TYPE_CHARS: Final = 64

CHAT_ROLES: Final = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a chat. Typed text parts were joined when it was decoded. `reasoning` is what the
    assistant thought before it answered."""

    role: str
    content: str
    reasoning: str = ""

    @classmethod
    def decode(cls, source: Fields) -> ChatMessage:
        role = source.choice("role", CHAT_ROLES, default="")
        if not role:
            raise source.fail(f"'role' is missing; allowed: {', '.join(CHAT_ROLES)}")
        return cls(
            role=role,
            content=_decode_content(source),
            reasoning=source.text_or_none("reasoning") or "",
        )

    def encode(self) -> dict[str, Any]:
        encoded = {"role": self.role, "content": self.content}
        return {**encoded, "reasoning": self.reasoning} if self.reasoning else encoded


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
