"""Operations that give scores to texts: what `classify` and `rerank` take, and what they give.

Owns their parameters and the entries of their results. Which labels a model has, and how its
numbers become scores, is the daemon's.

Invariants: `decode(encode(x)) == x`; a ranking names each document at most once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.completion import MAX_MODEL_NAME_CHARS
from openclawctl.wire.fields import present
from openclawctl.wire.framing import MAX_RESULT_ITEMS
from openclawctl.wire.labels import decode_labels
from openclawctl.wire.scheduling import decode_keep_alive_s, decode_scheduling

if TYPE_CHECKING:
    from openclawctl.wire.fields import Fields

MAX_SCORED_TEXTS: Final = 2048
"""As many as `embed` takes."""

MAX_LABELS: Final = 10_000
"""Most labels of one text: more than the largest of the well-known sets has."""

MAX_SCORES: Final = 16_384
"""Most scores in one result of `classify`: of 2,048 texts, eight labels each. Larger ones would
hold up the daemon's loop while they are encoded."""

_LARGEST: Final = 1e38
"""No float32 is larger."""


@dataclass(frozen=True, slots=True)
class ClassifyParams:
    """`classify`: the labels of each text with their scores, the best first; `top_k` of them, all
    by default."""

    input: list[str]
    model: str | None = None
    top_k: int | None = None
    priority: str | None = None
    deadline_s: float | None = None
    app: str | None = None
    session: str | None = None
    keep_alive_s: float | None = None

    @classmethod
    def decode(cls, source: Fields) -> ClassifyParams:
        return cls(
            _texts(source, "input"),
            source.text_or_none("model", max_chars=MAX_MODEL_NAME_CHARS),
            top_k=source.integer_or_none("top_k", low=1, high=MAX_LABELS),
            **_of_everything(source),
        )

    def encode(self) -> dict[str, Any]:
        return present(self)

    @property
    def adapter(self) -> str | None:
        """No LoRA is applied to what gives scores."""
        return None


@dataclass(frozen=True, slots=True)
class RerankParams:
    """`rerank`: how well each document answers the query, the best first; `top_n` of them, all by
    default, with their texts if `return_documents`."""

    query: str
    documents: list[str]
    model: str | None = None
    top_n: int | None = None
    return_documents: bool = False
    priority: str | None = None
    deadline_s: float | None = None
    app: str | None = None
    session: str | None = None
    keep_alive_s: float | None = None

    @classmethod
    def decode(cls, source: Fields) -> RerankParams:
        query = source.text("query")
        if not query:
            raise source.fail("'query' is empty")
        return cls(
            query,
            _texts(source, "documents"),
            source.text_or_none("model", max_chars=MAX_MODEL_NAME_CHARS),
            top_n=source.integer_or_none("top_n", low=1, high=MAX_SCORED_TEXTS),
            return_documents=source.boolean("return_documents", default=False),
            **_of_everything(source),
        )

    def encode(self) -> dict[str, Any]:
        return present(self)

    @property
    def input(self) -> list[str]:
        """What is computed one by one, each beside the query."""
        return self.documents

    @property
    def adapter(self) -> str | None:
        """No LoRA is applied to what gives scores."""
        return None


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label of a text. `score` is a probability, or of a regression its number."""

    label: str
    score: float

    @classmethod
    def decode(cls, source: Fields) -> LabelScore:
        return cls(source.text("label"), _score(source))

    def encode(self) -> dict[str, Any]:
        return present(self)


@dataclass(frozen=True, slots=True)
class Ranked:
    """One document of a ranking: `index` is its number among those that were sent."""

    index: int
    score: float
    document: str | None = None

    @classmethod
    def decode(cls, source: Fields) -> Ranked:
        index = source.integer("index", low=0, high=MAX_SCORED_TEXTS - 1)
        return cls(index, _score(source), source.text_or_none("document"))

    def encode(self) -> dict[str, Any]:
        return present(self)


def decode_classifications(source: Fields) -> list[list[LabelScore]]:
    """`classifications` of a result: of each text its labels, the best first."""
    texts = source.items("classifications", max_items=MAX_RESULT_ITEMS)
    return [[LabelScore.decode(each) for each in _maps(source, labels)] for labels in texts]


def decode_ranking(source: Fields) -> list[Ranked]:
    """`ranking` of a result: the documents, the best first."""
    ranked = source.items("ranking", max_items=MAX_SCORED_TEXTS)
    return [Ranked.decode(source.nested(each, "ranking")) for each in ranked]


def _of_everything(source: Fields) -> dict[str, Any]:
    """What every operation that computes has."""
    values = {**decode_scheduling(source), **decode_labels(source)}
    return {**values, "keep_alive_s": decode_keep_alive_s(source)}


def _maps(source: Fields, values: object) -> list[Fields]:
    if not isinstance(values, list):
        raise source.fail("'classifications' must be a list of lists")
    return [source.nested(value, "classifications") for value in values]


def _texts(source: Fields, name: str) -> list[str]:
    texts = source.texts(name, max_items=MAX_SCORED_TEXTS)
    if not texts or not all(texts):
        raise source.fail(f"'{name}' must hold at least one text, and no empty ones")
    return texts


def _score(source: Fields) -> float:
    return source.number("score", low=-_LARGEST, high=_LARGEST)
