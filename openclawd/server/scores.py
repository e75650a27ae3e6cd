"""From a model's numbers to labels and rankings: the results of `classify` and `rerank`.

Owns which scores a result has and their order. The numbers come from a worker that may have read a
hostile file, so their shape is checked. Knows no connection and no model but by its `info`.
"""

from __future__ import annotations

import heapq
import math
import sys
from array import array
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import LimitExceeded, ModelFailed, Unsupported
from openclawctl.wire.scoring import MAX_SCORES, ClassifyParams, LabelScore, Ranked, RerankParams

if TYPE_CHECKING:
    from openclawctl.wire.completion import ChatParams, GenerateParams
    from openclawctl.wire.operations import EncodingParams

_FLOAT_BYTES: Final = 4
_SIGMOID: Final = "sigmoid"
_score = attrgetter("score")


@dataclass(slots=True)
class Classification:
    """Labels with their scores, of each of `num_texts` the best `top_k`. With `is_sigmoid` the
    numbers that come are still to be made into scores. `problem` is why they are of no use, if they
    are not."""

    model: str
    labels: list[str]
    top_k: int
    num_texts: int
    is_sigmoid: bool
    texts: dict[int, list[LabelScore]] = field(default_factory=dict)
    problem: ModelFailed | None = None

    def take(self, index: int, vector: bytes) -> None:
        """The scores of one text. Never raises."""
        try:
            values = _numbers(vector, self.model, num=len(self.labels), is_sigmoid=self.is_sigmoid)
        except ModelFailed as problem:
            self.problem = problem
            return
        named = map(LabelScore, self.labels, values)
        self.texts[index] = heapq.nlargest(self.top_k, named, key=_score)

    def result(self) -> dict[str, Any]:
        """A text that was not computed any more has no labels."""
        texts = [self.texts.get(index, []) for index in range(self.num_texts)]
        return {"classifications": [[each.encode() for each in text] for text in texts]}


@dataclass(slots=True)
class Ranking:
    """Documents by their scores, the best `top_n`. `is_sigmoid` and `problem` are as above."""

    model: str
    params: RerankParams
    is_sigmoid: bool
    scores: dict[int, float] = field(default_factory=dict)
    problem: ModelFailed | None = None

    def take(self, index: int, vector: bytes) -> None:
        """The score of one document. Never raises."""
        try:
            (score,) = _numbers(vector, self.model, num=1, is_sigmoid=self.is_sigmoid)
        except ModelFailed as problem:
            self.problem = problem
            return
        self.scores[index] = score

    def result(self) -> dict[str, Any]:
        """Of documents with the same score, the one that was sent first comes first."""
        best_first = sorted(self.scores, key=lambda index: (-self.scores[index], index))
        ranking = [self._ranked(index) for index in best_first[: self.params.top_n]]
        return {"ranking": [each.encode() for each in ranking]}

    def _ranked(self, index: int) -> Ranked:
        text = self.params.documents[index] if self.params.return_documents else None
        return Ranked(index, self.scores[index], text)


Scores = Classification | Ranking


def scores_of(
    params: GenerateParams | ChatParams | EncodingParams, model: str, info: dict[str, Any]
) -> Scores | None:
    """Where the scores of a request for such are gathered; None for any other. Raises
    `LimitExceeded` for more than one result holds."""
    match params:
        case RerankParams():
            return Ranking(model, params, is_sigmoid=info.get("rank_scores") == _SIGMOID)
        case ClassifyParams(input=texts, top_k=top_k):
            labels = _labels(model, info)
            num_labels = min(top_k or len(labels), len(labels))
            _check_number(len(texts), num_labels, model)
            is_sigmoid = len(labels) == 1 and info.get("label_scores") == _SIGMOID
            return Classification(model, labels, num_labels, len(texts), is_sigmoid)
        case _:
            return None


def _labels(model: str, info: dict[str, Any]) -> list[str]:
    labels = info.get("labels")
    if not isinstance(labels, list | tuple) or not labels:
        raise Unsupported(f"model {model} has no labels", hint="use a model that classifies")
    return [str(label) for label in labels]


def _check_number(num_texts: int, num_labels: int, model: str) -> None:
    if num_texts * num_labels > MAX_SCORES:
        raise LimitExceeded(
            f"{num_texts} texts with {num_labels} labels of model {model} each are"
            f" {num_texts * num_labels} scores; one result holds {MAX_SCORES} at most",
            hint=f"ask for {max(1, MAX_SCORES // num_labels)} texts at once, or for the best labels"
            " only (top_k)",
        )


def _numbers(vector: bytes, model: str, *, num: int, is_sigmoid: bool) -> list[float]:
    """Little-endian float32, as the worker sends them, made into scores."""
    if len(vector) != num * _FLOAT_BYTES:
        raise ModelFailed(
            f"model {model} gave {len(vector) / _FLOAT_BYTES:g} scores instead of {num}",
            hint="its configuration and its weights do not agree; see its config.json",
        )
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    if not all(map(math.isfinite, values)):
        raise ModelFailed(f"model {model} gave a score that is no number")
    return list(map(_sigmoid, values)) if is_sigmoid else values.tolist()


def _sigmoid(number: float) -> float:
    return 0.5 * (1 + math.tanh(number / 2))  # overflows nowhere
