"""An encoder: it embeds, needs each input whole, and cannot generate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from backends.conformance import cosine, embed
from backends.tiny_bert import CONTEXT, LENGTH, write_tiny_bert
from harness import short_folder
from worker.driver import running_worker

from openclawd.backends import llama
from openclawd.backends.base import LoadSpec
from openclawd.worker.messages import Loaded, Start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from openclawd.backends.llama import LlamaBackend


@pytest.fixture(scope="module")
def bert_path() -> Iterator[Path]:
    with short_folder() as folder:
        path = folder / "bert.gguf"
        write_tiny_bert(path)
        yield path


@pytest.fixture(scope="module")
def bert(bert_path: Path) -> Iterator[LlamaBackend]:
    spec = LoadSpec(
        str(bert_path), parallel=4, context=512, kv_tokens=2048, batch_tokens=32, threads=1
    )
    loaded = llama.load(spec, lambda _: True)
    yield loaded
    loaded.close()


def tokens_of(bert: LlamaBackend, text: str) -> list[int]:
    return bert.tokenize(text, add_special=True, parse_special=False)


def test_what_it_says_of_itself(bert: LlamaBackend) -> None:
    assert bert.info.architecture == "bert"
    assert not bert.info.can_generate
    assert bert.info.can_embed
    assert bert.info.embedding_length == LENGTH
    assert bert.info.context == CONTEXT
    assert str(CONTEXT) in bert.info.warnings[0]
    assert not bert.limits.splits_prompts
    assert bert.limits.embedding_batch_tokens == CONTEXT
    assert bert.max_token_bytes == 0  # an unknown word of any length is one token


def test_vectors_are_normalised_and_the_same_alone_and_together(bert: LlamaBackend) -> None:
    inputs = [tokens_of(bert, text) for text in ("the cat sat", "finance report of the", "a dog")]
    together = embed(bert, inputs)
    for tokens, ours in zip(inputs, together, strict=True):
        (alone,) = embed(bert, [tokens])
        assert cosine(ours, alone) > 0.9999
        assert abs(float(np.linalg.norm(ours)) - 1) < 1e-5
    assert cosine(together[0], together[1]) < 0.999


def test_an_encoder_as_a_worker(bert_path: Path, folder: Path) -> None:
    with running_worker(folder) as worker:
        loaded = worker.load(bert_path)
        assert isinstance(loaded, Loaded), loaded
        assert loaded.info["can_generate"] is False
        assert loaded.info["chat_template"] is False
        inputs = ["the cat sat " * 5, "a dog", "finance " * 50, "report", "the the", "of a cat"]
        outcome = worker.run("embed", input=inputs)
        assert sorted(outcome.vectors) == list(range(6))
        assert outcome.end.finish_reasons == ["stop"] * 6
        assert worker.refusal("generate", prompt="the cat")["code"] == "unsupported"
        rid = worker.prepare("embed", input=["cat " * 63])
        worker.send(Start(rid, 0, {}))
        (refused,) = worker.finish(rid)
        assert refused.end.to_problem().code == "prompt-too-long"
