"""Scores of texts: what is asked and what comes back, whole; and what is refused."""

import pytest

from openclawctl.wire.errors import InvalidRequest, RemoteProtocolError
from openclawctl.wire.fields import Fields
from openclawctl.wire.operations import Op, decode_params
from openclawctl.wire.scoring import (
    ClassifyParams,
    LabelScore,
    Ranked,
    RerankParams,
    decode_classifications,
    decode_ranking,
)


def result(**values):
    return Fields(values, where="result", error=RemoteProtocolError)


def test_labels_of_texts_come_back_as_they_were():
    labels = [[LabelScore("joy", 0.75), LabelScore("anger", 0.25)], [LabelScore("joy", -3.5)]]
    encoded = [[each.encode() for each in text] for text in labels]
    assert decode_classifications(result(classifications=encoded)) == labels


def test_a_ranking_comes_back_as_it_was():
    ranking = [Ranked(1, 0.5, "b"), Ranked(0, -2.0)]
    encoded = [each.encode() for each in ranking]
    assert encoded[1] == {"index": 0, "score": -2.0}
    assert decode_ranking(result(ranking=encoded)) == ranking


@pytest.mark.parametrize("labels", [1, {"label": "joy"}, [1]])
def test_labels_that_are_no_lists_of_maps_break_the_protocol(labels):
    with pytest.raises(RemoteProtocolError):
        decode_classifications(result(classifications=[labels]))


def test_what_is_computed_one_by_one():
    assert RerankParams("q", ["a", "b"]).input == ["a", "b"]
    assert ClassifyParams(["a"]).input == ["a"]
    assert RerankParams("q", ["a"]).adapter is ClassifyParams(["a"]).adapter is None


@pytest.mark.parametrize(
    ("op", "params", "words"),
    [
        (Op.RERANK, {"query": "", "documents": ["a"]}, "'query' is empty"),
        (Op.RERANK, {"query": "q", "documents": ["a", ""]}, "no empty ones"),
        (Op.CLASSIFY, {"input": []}, "at least one text"),
        (Op.EMBED, {"input": ["a"], "keep_alive_s": -0.5}, "seconds from 0, or -1 for ever"),
        (Op.PULL, {"source": "a/b", "sha256": "abc"}, "64 hexadecimal digits"),
    ],
)
def test_what_is_refused(op, params, words):
    with pytest.raises(InvalidRequest, match=words):
        decode_params(op, params)
