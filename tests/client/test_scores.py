"""`classify` and `rerank` of both clients: what they ask, and what they make of the answer."""

from __future__ import annotations

import asyncio

import pytest

from openclawctl import AsyncClient, Client, InvalidRequest, LabelScore, ProtocolError, Ranked

CLASSIFIED = [[{"label": "joy", "score": 0.75}, {"label": "anger", "score": 0.25}]] * 2
RANKED = [{"index": 1, "score": 2.5, "document": "b"}, {"index": 0, "score": -3.0}]


@pytest.fixture
def answering(peer, wire):
    """A daemon that gives these results, whatever it is asked."""

    def start(**result):
        def handler(connection, request):
            connection.done(request, **wire.result("", op="embed"), **result)

        return peer(handler=handler)

    return start


def both(daemon, call):
    """What each client makes of it."""

    async def ask():
        async with AsyncClient(daemon.path) as client:
            return await call(client)

    with Client(daemon.path) as client:
        return call(client), asyncio.run(ask())


def test_classify(answering):
    daemon = answering(classifications=CLASSIFIED)
    for r in both(daemon, lambda client: client.classify(["a", "b"], model="m", top_k=2)):
        assert r == [[LabelScore("joy", 0.75), LabelScore("anger", 0.25)]] * 2
        assert r.labels == ["joy", "joy"]
        assert (r.model, r.usage.prompt_tokens) == ("smollm2", 5)
        assert r.as_dict()["classifications"] == CLASSIFIED
    assert daemon.requests[0].params == {"input": ["a", "b"], "model": "m", "top_k": 2}
    assert daemon.requests[0].params == daemon.requests[1].params


def test_rerank(answering):
    daemon = answering(ranking=RANKED)
    options = {"top_n": 5, "return_documents": True, "priority": "batch"}
    for r in both(daemon, lambda client: client.rerank("q", iter(["a", "b"]), **options)):
        assert r == [Ranked(1, 2.5, "b"), Ranked(0, -3.0)]
        assert r.indexes == [1, 0]
        assert r.as_dict()["ranking"] == RANKED
    expected = {"query": "q", "documents": ["a", "b"], **options}
    assert [request.params for request in daemon.requests] == [expected] * 2


@pytest.mark.parametrize("classified", [[], CLASSIFIED, [[]], [{"label": "joy"}], [[{"score": 1}]]])
def test_a_classification_of_something_else_is_a_protocol_error(answering, classified):
    with (
        Client(answering(classifications=classified).path) as client,
        pytest.raises(ProtocolError),
    ):
        client.classify("one")


@pytest.mark.parametrize("indexes", [[0, 0], [1], [-1]])
def test_a_ranking_of_other_documents_is_a_protocol_error(answering, indexes):
    ranked = [{"index": index, "score": 0.5} for index in indexes]
    with Client(answering(ranking=ranked).path) as client, pytest.raises(ProtocolError):
        client.rerank("q", ["one"])


def test_a_mistake_is_named_before_anything_is_sent():
    client = Client("/nonexistent")
    with pytest.raises(InvalidRequest, match="top_k"):
        client.classify("x", top_k=0)
    with pytest.raises(InvalidRequest, match="'documents' must hold at least one"):
        client.rerank("q", [])
    with pytest.raises(TypeError, match="adapter"):
        client.rerank("q", ["x"], adapter="formal")
