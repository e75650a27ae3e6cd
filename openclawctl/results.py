"""What the client's operations return.

Owns the shape that callers rely on, and `as_dict`, which is what `--json` prints. Read from the
daemon's results by the wire's own decoders.
"""

from __future__ import annotations

import sys
from array import array
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, TypeVar

from openclawctl.wire import results as wire
from openclawctl.wire.errors import ProtocolError
from openclawctl.wire.fields import Fields
from openclawctl.wire.framing import MAX_ITEMS
from openclawctl.wire.results import InferenceResult, Timings, Usage
from openclawctl.wire.scoring import (
    LabelScore,
    Ranked,
    decode_classifications,
    decode_ranking,
)
from openclawctl.wire.tokens import MAX_TOKEN_ID, TokenLogprob, encode_logprobs
from openclawctl.wire.tools import ToolCall, decode_tool_calls

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from openclawctl.wire.messages import Delta

_FLOAT_BYTES: Final = 4

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Choice(wire.Choice):
    """One answer. `generate` fills `text`, `chat` fills `message`. `token_ids` are all that were
    sampled; `logprobs` has a record of each, where they were asked for."""

    logprobs: list[TokenLogprob] | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to `generate` or `chat`. `model` is the one that really answered; `context` says
    what became of the prompt; `warnings` are maps with `code` and `message`."""

    request_id: str
    model: str
    choices: list[Choice]
    usage: Usage
    timings: Timings
    context: dict[str, Any] = field(default_factory=dict)
    warnings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text of the first choice, of `chat` too."""
        return _text_of(self.choices[0])

    @property
    def texts(self) -> list[str]:
        """The text of every choice."""
        return [_text_of(choice) for choice in self.choices]

    @property
    def reasoning(self) -> str:
        """What the model thought before it answered, in the first choice of `chat`; mostly
        nothing."""
        reasoning = self.message.get("reasoning")
        return reasoning if isinstance(reasoning, str) else ""

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The tools that the model calls, in the first choice of `chat`; mostly none."""
        source = Fields(self.message, where="the daemon's result", error=ProtocolError)
        return decode_tool_calls(source)

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's turn, ready to be appended to the messages of the next `chat`."""
        return self.choices[0].message or {"role": "assistant", "content": self.text}

    @property
    def finish_reason(self) -> str:
        """`stop`, `length`, `cancelled` or `error`, of the first choice."""
        return self.choices[0].finish_reason

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, under the keys that `--json` promises."""
        return {
            "request_id": self.request_id,
            "model": self.model,
            "text": self.text,
            "reasoning": self.reasoning,
            "finish_reason": self.finish_reason,
            "choices": [_choice_dict(choice) for choice in self.choices],
            "usage": usage_dict(self.usage),
            "timings": asdict(self.timings),
            "context": self.context,
            "warnings": self.warnings,
        }


class Embeddings(list[list[float]]):
    """One normalised vector per input, in their order, with what they cost. `context` says what
    became of the texts."""

    def __init__(
        self,
        vectors: Iterable[list[float]],
        *,
        request_id: str,
        model: str,
        usage: Usage,
        timings: Timings,
        context: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(vectors)
        self.context = context or {}
        self.request_id = request_id
        self.model = model
        self.usage = usage
        self.timings = timings

    @property
    def vectors(self) -> list[list[float]]:
        return list(self)

    def as_dict(self) -> dict[str, Any]:
        return _computed_dict(self, {"embeddings": self.vectors})


class _Scored(list[T]):
    """What came of texts that were scored, and what that cost."""

    def __init__(self, items: Iterable[T], result: InferenceResult) -> None:
        super().__init__(items)
        self.request_id = result.request_id
        self.model = result.model
        self.usage = result.usage
        self.timings = result.timings
        self.context = result.context


class Classifications(_Scored[list[LabelScore]]):
    """Of each text its labels with their scores, the best first, with what they cost. `context`
    says what became of the texts."""

    @property
    def labels(self) -> list[str]:
        """The best label of each text."""
        return [text[0].label for text in self]

    def as_dict(self) -> dict[str, Any]:
        return _computed_dict(
            self, {"classifications": [[asdict(each) for each in text] for text in self]}
        )


class Ranking(_Scored[Ranked]):
    """Documents by how well they answer the query, the best first, with what that cost. `context`
    says what became of the texts."""

    @property
    def indexes(self) -> list[int]:
        """The numbers of the documents, the best first."""
        return [each.index for each in self]

    def as_dict(self) -> dict[str, Any]:
        return _computed_dict(self, {"ranking": [each.encode() for each in self]})


def _computed_dict(
    result: Embeddings | Classifications | Ranking, items: dict[str, Any]
) -> dict[str, Any]:
    """With what there is beside the `items`."""
    return {
        "request_id": result.request_id,
        "model": result.model,
        **items,
        "usage": usage_dict(result.usage),
        "timings": asdict(result.timings),
        "context": result.context,
    }


def _choice(choice: wire.Choice, logprobs: list[TokenLogprob] | None) -> Choice:
    known = {field.name: getattr(choice, field.name) for field in fields(choice)}
    return Choice(**known, logprobs=logprobs)


def _text_of(choice: Choice) -> str:
    if choice.text is not None:
        return choice.text
    content = (choice.message or {}).get("content")
    return content if isinstance(content, str) else ""


def _choice_dict(choice: Choice) -> dict[str, Any]:
    logprobs = None if choice.logprobs is None else encode_logprobs(choice.logprobs)
    return {**asdict(choice), "logprobs": logprobs}


def usage_dict(usage: Usage) -> dict[str, Any]:
    return {**asdict(usage), "total_tokens": usage.total_tokens}


def completion(
    result: dict[str, Any],
    warnings: list[dict[str, Any]],
    logprobs: Mapping[int, list[TokenLogprob]],
) -> Completion:
    """`logprobs` are those of each choice, by its index, from the deltas. Raises `ProtocolError`
    for a result that is not one."""
    decoded = _decoded(result)
    if not decoded.choices:
        raise ProtocolError("the daemon sent a result without an answer")
    return Completion(
        request_id=decoded.request_id,
        model=decoded.model,
        choices=[_choice(each, logprobs.get(each.index)) for each in decoded.choices],
        usage=decoded.usage,
        timings=decoded.timings,
        context=decoded.context,
        warnings=warnings,
    )


def embeddings(result: dict[str, Any], deltas: Iterable[Delta], num_inputs: int) -> Embeddings:
    """Raises `ProtocolError` when a vector is missing or is none."""
    decoded = _decoded(result)
    vectors = {delta.index: _vector(delta.embedding) for delta in deltas if delta.embedding}
    if sorted(vectors) != list(range(num_inputs)):
        raise ProtocolError(f"the daemon sent {len(vectors)} vectors for {num_inputs} texts")
    return Embeddings(
        (vectors[index] for index in range(num_inputs)),
        request_id=decoded.request_id,
        model=decoded.model,
        usage=decoded.usage,
        timings=decoded.timings,
        context=decoded.context,
    )


def classifications(result: dict[str, Any], num_texts: int) -> Classifications:
    """Raises `ProtocolError` where a text has no labels."""
    texts = decode_classifications(_fields(result))
    if len(texts) != num_texts or not all(texts):
        raise ProtocolError(f"the daemon classified {len(texts)} of {num_texts} texts")
    return Classifications(texts, _decoded(result))


def ranking(result: dict[str, Any], num_documents: int) -> Ranking:
    """Raises `ProtocolError` for a ranking of other documents."""
    documents = decode_ranking(_fields(result))
    indexes = {each.index for each in documents}
    if len(indexes) != len(documents) or not indexes <= set(range(num_documents)):
        raise ProtocolError("the daemon ranked documents that were not sent")
    return Ranking(documents, _decoded(result))


def tokens_of(result: dict[str, Any]) -> list[int]:
    return _fields(result).integers("tokens", max_items=MAX_ITEMS, low=0, high=MAX_TOKEN_ID)


def text_of(result: dict[str, Any]) -> str:
    return _fields(result).text("text")


def _fields(result: dict[str, Any]) -> Fields:
    return Fields(result, where="the daemon's result", error=ProtocolError)


def _decoded(result: dict[str, Any]) -> InferenceResult:
    return InferenceResult.decode(_fields(result))


def _vector(data: bytes) -> list[float]:
    if len(data) % _FLOAT_BYTES:
        raise ProtocolError(f"the daemon sent a vector of {len(data)} bytes, not of float32")
    values = array("f", data)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()
