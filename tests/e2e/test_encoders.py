"""`embed`, `classify` and `rerank` through a daemon: real encoders on torch and on llama.cpp."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from backends.tiny_bert import write_tiny_bert
from harness import Daemon, minilm_path, running_daemon, short_folder
from models.tiny_torch import write_classifier

from openclawctl import Client, PromptTooLong, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

LABELS = ["joy", "anger", "fear"]


@pytest.fixture(scope="module")
def encoders() -> Iterator[Daemon]:
    with short_folder() as folder:
        write_classifier(folder / "intent", LABELS)
        write_classifier(folder / "reranker", ["good"])
        write_tiny_bert(folder / "bert.gguf")
        models = {
            "minilm": {"path": str(minilm_path()), "context": 256},
            "intent": {"path": str(folder / "intent"), "context": 64},
            "reranker": {"path": str(folder / "reranker"), "context": 64},
            "bert": {"path": str(folder / "bert.gguf"), "context": 64},
        }
        for model in models.values():
            model["threads"] = 1
        config = folder / "c.json"
        rule = {"name": "short", "match": {"app": "short"}, "max_prompt_tokens": 40}
        limits = [{**rule, "on_too_long": "truncate_head"}]
        config.write_text(json.dumps({"models": models, "limits": limits}))
        with running_daemon("--config", str(config)) as daemon:
            yield daemon.wait_ready()


@pytest.fixture
def client(encoders: Daemon) -> Iterator[Client]:
    with Client(encoders.socket) as opened:
        yield opened


@pytest.mark.parametrize("model", ["minilm", "bert"])
def test_many_clients_at_once_get_what_each_would_get_alone(encoders: Daemon, model: str) -> None:
    """More of them than `parallel`, which does not count what takes no memory between steps."""
    texts = [f"the cat sat of {number} a dog" for number in range(24)]

    def embed(text: str) -> list[float]:
        with Client(encoders.socket) as own:
            return own.embed(text, model=model)[0]

    with Client(encoders.socket) as client:
        together = client.embed(texts, model=model)
        (row,) = [row for row in client.models() if row["name"] == model]
        assert row["slots"] >= 64
        with ThreadPoolExecutor(len(texts)) as pool:
            vectors = list(pool.map(embed, texts))
    for one, other in zip(vectors, together, strict=True):
        assert math.isclose(math.hypot(*one), 1, rel_tol=1e-4)
        assert sum(a * b for a, b in zip(one, other, strict=True)) > 0.9999


def test_near_texts_have_near_vectors(client: Client) -> None:
    cat, kitten, bank = client.embed(
        ["A cat sits on the mat.", "A kitten rests on a rug.", "The bank raised its rates."],
        model="minilm",
    )
    near, far = (sum(a * b for a, b in zip(cat, other, strict=True)) for other in (kitten, bank))
    assert near > 0.5 > 0.2 > far


def test_texts_are_classified(client: Client) -> None:
    texts = ["the cat sat", "a report of finance"]
    r = client.classify(texts, model="intent")
    for labels in r:
        assert sorted(each.label for each in labels) == sorted(LABELS)
        assert [each.score for each in labels] == sorted((e.score for e in labels), reverse=True)
        assert math.isclose(sum(each.score for each in labels), 1, rel_tol=1e-5)
    assert r.usage.prompt_tokens == 5 + 6
    assert r.usage.completion_tokens == 0
    best = client.classify(texts, model="intent", top_k=1)
    assert [[each.label for each in labels] for labels in best] == [[label] for label in r.labels]


def test_documents_are_ranked(client: Client) -> None:
    documents = ["a dog", "the cat sat", "finance report", "of of of"]
    r = client.rerank("the cat", documents, model="reranker", return_documents=True)
    assert sorted(r.indexes) == [0, 1, 2, 3]
    assert [each.document for each in r] == [documents[index] for index in r.indexes]
    assert [each.score for each in r] == sorted((each.score for each in r), reverse=True)
    assert all(0 < each.score < 1 for each in r)
    # [CLS], the query's two, [SEP], the document's and [SEP], of each document
    assert r.usage.prompt_tokens == 4 * 5 + 2 + 3 + 2 + 3
    for place, best in enumerate(r[:2]):
        (alone,) = client.rerank("the cat", [documents[best.index]], model="reranker")
        assert math.isclose(alone.score, r[place].score, rel_tol=1e-3)
    top = client.rerank("the cat", documents, model="reranker", top_n=2)
    assert top.indexes == r.indexes[:2]


def test_the_command_line_prints_scores(encoders: Daemon) -> None:
    command = [sys.executable, "-m", "openclawctl", "--socket", str(encoders.socket)]
    asked = [*command, "classify", "-m", "intent", "--top-k", "1", "the cat"]
    line = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    assert line.split()[0] in LABELS
    asked = [*command, "rerank", "-m", "reranker", "the cat"]
    done = subprocess.run(asked, input="a dog\n\nthe cat\n", capture_output=True, text=True)
    ranked = [each.split("\t")[1:] for each in done.stdout.splitlines()]
    assert sorted(ranked) == [["0", "a dog"], ["1", "the cat"]]


@pytest.mark.parametrize(
    ("model", "ask", "reason"),
    [
        ("minilm", lambda c: c.generate("x", model="minilm"), "it makes no text"),
        (
            "minilm",
            lambda c: c.classify("x", model="minilm"),
            r"model minilm: this model .* has no labels",
        ),
        ("minilm", lambda c: c.rerank("x", ["y"], model="minilm"), "it cannot rank"),
        ("bert", lambda c: c.rerank("x", ["y"], model="bert"), "it cannot rank"),
        ("intent", lambda c: c.embed("x", model="intent"), "the scores of 3 labels, not to embed"),
        ("intent", lambda c: c.rerank("x", ["y"], model="intent"), "a ranking needs one"),
        ("reranker", lambda c: c.embed("x", model="reranker"), "one score, not to embed"),
    ],
)
def test_what_a_model_cannot_do_is_said_with_what_it_can(
    client: Client, model: str, ask: object, reason: str
) -> None:
    assert callable(ask)
    with pytest.raises(Unsupported, match=reason) as refusal:
        ask(client)
    able = {
        "minilm": "embed",
        "bert": "embed",
        "intent": "classify",
        "reranker": "classify or rerank",
    }
    assert f"use {able[model]}, or" in refusal.value.hint


def test_a_text_over_the_context_is_refused_with_the_numbers(client: Client) -> None:
    long = "the " * 63
    with pytest.raises(PromptTooLong, match=r"65 tokens.*64 tokens"):
        client.classify(["short", long], model="intent")
    with pytest.raises(PromptTooLong, match=r"68 tokens.*64 tokens"):
        client.rerank("the cat", ["short", long], model="reranker")
    with pytest.raises(PromptTooLong, match=r"302 tokens.*256 tokens"):
        client.embed("the " * 300, model="minilm")


def test_of_a_pair_that_is_too_long_the_document_is_cut(client: Client) -> None:
    r = client.rerank("the cat", ["a dog", "the " * 50], model="reranker", app="short")
    assert r.context["policy"] == "truncate_head"
    assert r.context["dropped"] == 50 + 5 - 40
    assert r.usage.prompt_tokens == 40 + 7
    with pytest.raises(PromptTooLong, match=r"limit short allows 40"):
        client.rerank("cat " * 45, ["a"], model="reranker", app="short")


def test_what_was_computed_is_in_the_ledger(client: Client) -> None:
    client.classify("the cat", model="intent", app="ledger-test")
    client.rerank("a", ["b", "c"], model="reranker", app="ledger-test")
    rows = client.usage(by=["app", "op"])["rows"]
    counted = {
        row["groups"]["op"]: row["prompt_tokens"]
        for row in rows
        if row["groups"]["app"] == "ledger-test"
    }
    assert counted == {"classify": 4, "rerank": 2 * 5}
