"""What `generate`, `chat` and `embed` give: the map inside `done.result`.

Owns finish reasons, usage, timings and choices.

Invariant: `decode(encode(x)) == x`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from openclawctl.wire.fields import present
from openclawctl.wire.framing import MAX_ITEMS
from openclawctl.wire.messages import LONGEST_S
from openclawctl.wire.tokens import decode_token_ids

if TYPE_CHECKING:
    from openclawctl.wire.fields import Fields


class FinishReason(enum.Enum):
    """Why a result ended. `length`: `max_tokens` or the context is used up."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Usage:
    """Exact token counts. `cached_tokens` of the prompt were not computed again."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    counts: str = "exact"

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @classmethod
    def decode(cls, source: Fields) -> Usage:
        return cls(
            prompt_tokens=source.integer("prompt_tokens", low=0),
            cached_tokens=source.integer("cached_tokens", low=0),
            completion_tokens=source.integer("completion_tokens", low=0),
            counts=source.text("counts"),
        )

    def encode(self) -> dict[str, Any]:
        return present(self)


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds by the daemon's monotonic clock, from the request's arrival.

    `load_s` and `queue_s` are what it waited for its model and for its turn; `ttft_s` is the time
    to the first token (None when there was none); `total_s` ends with the last token. With
    speculation, `accepted_tokens` of the `guessed_tokens` were right and came without a step of
    their own.
    """

    load_s: float = 0.0
    queue_s: float = 0.0
    ttft_s: float | None = None
    total_s: float = 0.0
    guessed_tokens: int = 0
    accepted_tokens: int = 0

    @classmethod
    def decode(cls, source: Fields) -> Timings:
        return cls(
            load_s=source.number("load_s", low=0, high=LONGEST_S),
            queue_s=source.number("queue_s", low=0, high=LONGEST_S),
            ttft_s=source.number_or_none("ttft_s", low=0, high=LONGEST_S),
            total_s=source.number("total_s", low=0, high=LONGEST_S),
            guessed_tokens=source.integer_or_none("guessed_tokens", low=0) or 0,
            accepted_tokens=source.integer_or_none("accepted_tokens", low=0) or 0,
        )

    def encode(self) -> dict[str, Any]:
        return present(self)


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer. `generate` fills `text`, `chat` fills `message`. `token_ids` are all that were
    sampled."""

    index: int
    finish_reason: str
    text: str | None = None
    message: dict[str, Any] | None = None
    token_ids: list[int] = field(default_factory=list)

    @classmethod
    def decode(cls, source: Fields) -> Choice:
        return cls(
            index=source.integer("index", low=0),
            finish_reason=source.text("finish_reason"),
            text=source.text_or_none("text"),
            message=source.mapping("message") or None,
            token_ids=decode_token_ids(source),
        )


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """The result of `generate`, `chat` and `embed` (which has no choices).

    `model` is the one that really answered. `context` says what became of the prompt: `policy`,
    `prompt_tokens_in`, `dropped` (tokens) and the `max_tokens` that applied.
    """

    request_id: str
    model: str
    usage: Usage
    timings: Timings
    choices: list[Choice] = field(default_factory=list)
    context: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def decode(cls, source: Fields) -> InferenceResult:
        return cls(
            request_id=source.text("request_id"),
            model=source.text("model"),
            usage=Usage.decode(source.nested(source.mapping("usage"), "usage")),
            timings=Timings.decode(source.nested(source.mapping("timings"), "timings")),
            choices=[
                Choice.decode(source.nested(value, "choices"))
                for value in source.items("choices", max_items=MAX_ITEMS)
            ],
            context=source.mapping("context"),
        )

    def encode(self) -> dict[str, Any]:
        return {
            "request_id": self.request_id,
            "model": self.model,
            "choices": [present(choice) for choice in self.choices],
            "usage": self.usage.encode(),
            "timings": self.timings.encode(),
            "context": self.context,
        }
