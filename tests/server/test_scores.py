"""From a model's numbers to labels and rankings."""

from __future__ import annotations

import struct

import pytest

from openclawctl.wire.errors import LimitExceeded, Unsupported
from openclawctl.wire.operations import EmbedParams
from openclawctl.wire.scoring import MAX_SCORES, ClassifyParams, RerankParams
from openclawd.server.scores import Scores, scores_of

INFO = {"labels": ["joy", "anger", "fear"]}


def vector(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def gathered(params: ClassifyParams | RerankParams, *vectors: bytes) -> Scores:
    """The scores of a request, whose vectors came in the opposite order."""
    scores = scores_of(params, "m", INFO)
    assert scores is not None
    for index in reversed(range(len(vectors))):
        scores.take(index, vectors[index])
    return scores


def test_labels_come_best_first_and_as_many_as_were_asked_for() -> None:
    params = ClassifyParams(["a", "b"], top_k=2)
    scores = gathered(params, vector(0.25, 0.5, 0.125), vector(0.25, 0, 0.75))
    assert scores.result() == {
        "classifications": [
            [{"label": "anger", "score": 0.5}, {"label": "joy", "score": 0.25}],
            [{"label": "fear", "score": 0.75}, {"label": "joy", "score": 0.25}],
        ]
    }
    every = gathered(ClassifyParams(["a"]), vector(0.25, 0.5, 0.125)).result()
    assert [each["label"] for each in every["classifications"][0]] == ["anger", "joy", "fear"]


def test_documents_come_best_first_and_equals_in_their_order() -> None:
    vectors = [vector(-1), vector(3), vector(-1)]
    params = RerankParams("q", ["a", "b", "c"], top_n=2, return_documents=True)
    assert gathered(params, *vectors).result() == {
        "ranking": [
            {"index": 1, "score": 3.0, "document": "b"},
            {"index": 0, "score": -1.0, "document": "a"},
        ]
    }
    every = gathered(RerankParams("q", ["a", "b", "c"]), *vectors).result()
    assert [each["index"] for each in every["ranking"]] == [1, 0, 2]
    assert all("document" not in each for each in every["ranking"])


def test_what_was_cancelled_has_no_labels() -> None:
    scores = scores_of(ClassifyParams(["a", "b"], top_k=1), "m", INFO)
    assert scores is not None
    scores.take(1, vector(1, 0, 0))
    assert scores.result()["classifications"] == [[], [{"label": "joy", "score": 1.0}]]


@pytest.mark.parametrize("params", [ClassifyParams(["a"]), RerankParams("q", ["a"])])
@pytest.mark.parametrize("wrong", [b"", vector(1, 2), b"abc", vector(float("nan"))])
def test_numbers_that_cannot_be_are_the_models_failure(
    params: ClassifyParams | RerankParams, wrong: bytes
) -> None:
    scores = gathered(params, wrong)
    assert scores.problem is not None
    assert "model m" in scores.problem.message


def test_a_single_number_is_made_into_a_score_as_the_model_says() -> None:
    info = {"labels": ["good"], "label_scores": "sigmoid", "rank_scores": "raw"}
    classified = scores_of(ClassifyParams(["a"]), "m", info)
    ranked = scores_of(RerankParams("q", ["a"]), "m", info)
    assert classified is not None
    assert ranked is not None
    for scores in (classified, ranked):
        scores.take(0, vector(-1000))
        assert scores.problem is None
    assert classified.result()["classifications"] == [[{"label": "good", "score": 0.0}]]
    assert ranked.result()["ranking"] == [{"index": 0, "score": -1000.0}]


def test_more_scores_than_a_result_holds_are_refused_with_the_numbers() -> None:
    texts = ["a"] * 2048
    info = {"labels": [f"l{number}" for number in range(9)]}
    with pytest.raises(LimitExceeded, match=f"18432 scores; one result holds {MAX_SCORES}"):
        scores_of(ClassifyParams(texts), "m", info)
    assert scores_of(ClassifyParams(texts, top_k=8), "m", info) is not None


def test_who_asks_for_no_scores_gets_none() -> None:
    assert scores_of(EmbedParams(["a"]), "m", INFO) is None
    with pytest.raises(Unsupported, match="model m has no labels"):
        scores_of(ClassifyParams(["a"]), "m", {})
