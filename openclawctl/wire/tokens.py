"""Tokens on the wire: their ids, and what is told of one that `logprobs` was asked for.

Owns the record of one token, in deltas and results.

Invariant: `decode(encode(x)) == x`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.framing import MAX_RESULT_ITEMS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from openclawctl.wire.fields import Fields

MAX_TOKEN_ID: Final = 2**31 - 1
MAX_TOP_LOGPROBS: Final = 20

LOWEST_LOGPROB: Final = -9999.0
"""Stands for everything below, down to the minus infinity of what can never come."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, what it adds to the text, and the natural logarithm of the probability that the
    model gave it, before any filter. `top` holds the likeliest tokens in its place."""

    token_id: int
    text: str
    logprob: float
    top: list[TokenLogprob] = field(default_factory=list)

    @classmethod
    def decode(cls, source: Fields) -> TokenLogprob:
        top = source.items("top", max_items=MAX_TOP_LOGPROBS)
        return cls(
            *_decode_token(source),
            top=[cls(*_decode_token(source.nested(value, "top"))) for value in top],
        )

    def encode(self) -> dict[str, Any]:
        encoded: dict[str, Any] = {
            "token_id": self.token_id,
            "text": self.text,
            "logprob": self.logprob,
        }
        if self.top:
            encoded["top"] = encode_logprobs(self.top)
        return encoded


def decode_token_ids(source: Fields) -> list[int]:
    """The field `token_ids` of a message or a result; empty where there is none."""
    return source.integers("token_ids", max_items=MAX_RESULT_ITEMS, low=0, high=MAX_TOKEN_ID)


def decode_logprobs(source: Fields) -> list[TokenLogprob] | None:
    """The field `logprobs` of a message or a result; None where there is none."""
    if not source.has("logprobs"):
        return None
    values = source.items("logprobs", max_items=MAX_RESULT_ITEMS)
    return [TokenLogprob.decode(source.nested(value, "logprobs")) for value in values]


def encode_logprobs(logprobs: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    return [each.encode() for each in logprobs]


def num_items(num_tokens: int, *, num_top: int) -> int:
    """How many items (`MAX_RESULT_ITEMS`) the records of so many tokens are: the entries of their
    list, their pairs, and both again for the likeliest ones."""
    return num_tokens * (1 + 4 + 4 * num_top)


def _decode_token(source: Fields) -> tuple[int, str, float]:
    return (
        source.integer("token_id", low=0, high=MAX_TOKEN_ID),
        source.text("text"),
        source.number("logprob", low=LOWEST_LOGPROB, high=0),
    )
