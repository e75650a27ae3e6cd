"""Encoders on torch give what sentence-transformers and transformers give."""

from __future__ import annotations

import contextlib
import json
import random
import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import tqdm
import transformers
from harness import minilm_path, short_folder
from models.tiny_torch import (
    CONTEXT,
    CONTROLS,
    FEED_FORWARD,
    LENGTH,
    NUM_LAYERS,
    WORDS,
    write_classifier,
    write_sentence_encoder,
)

from openclawd.backends import pytorch
from openclawd.backends.base import CannotLoad, DecodeFailed, LoadSpec
from openclawd.backends.torch_encoder import TorchEncoder
from openclawd.backends.torch_encoder_load import keeps_nothing
from openclawd.engine.batch import Batch, BatchKind, Chunk, Outputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from openclawd.backends.base import Backend

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sentence_transformers

torch.set_num_threads(1)  # two that wait for each other are slow on a busy machine
tqdm.tqdm.monitor_interval = 0  # else its progress bars leave a thread behind

LABELS = ["joy", "anger", "fear"]
TEXTS = ["the cat sat", "a", "report of finance " * 12, "dogs", "the the the cat [SEP] sat ]"]


@contextlib.contextmanager
def loaded(path: Path, *, threads: int = 1, **options: Any) -> Iterator[Backend]:
    spec = LoadSpec(
        str(path),
        parallel=4,
        context=512,
        kv_tokens=2048,
        batch_tokens=512,
        threads=threads,
        options=options,
    )
    backend = pytorch.load(spec, lambda _: True)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def classifier(place: Path) -> Path:
    path = place / "classifier"
    write_classifier(path, LABELS)
    return path


@pytest.fixture(scope="module")
def reranker(place: Path) -> Path:
    path = place / "reranker"
    write_classifier(path, ["good"])
    return path


def tokens_of(backend: Backend, texts: Sequence[str]) -> list[list[int]]:
    return [backend.tokenize(text, add_special=True, parse_special=False) for text in texts]


def computed(backend: Backend, texts: Sequence[list[int]]) -> np.ndarray:
    """The vectors of texts that are computed in one step."""
    chunks = [Chunk(slot, 0, tokens, 1) for slot, tokens in enumerate(texts)]
    outputs = backend.forward(Batch(BatchKind.EMBEDDING, chunks))
    assert isinstance(outputs, Outputs)
    assert not outputs.garbage
    return np.stack([np.frombuffer(outputs.vectors[slot], "<f4") for slot in range(len(texts))])


def cosines(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return (ours * theirs).sum(axis=1) / lengths


# ---- several threads ----


def test_threads_that_compute_texts_of_their_own_give_the_same() -> None:
    """In the same order, however the texts are shared out; and what is computed alone has all
    threads, also afterwards."""
    with loaded(minilm_path()) as backend:
        texts = tokens_of(backend, [*TEXTS, "one more, which makes it six"])
        wanted = computed(backend, texts)
    with loaded(minilm_path(), threads=2) as backend:
        assert backend.info.threads == 2
        for _ in range(3):
            assert cosines(computed(backend, texts), wanted).min() > 0.99999
        assert cosines(computed(backend, texts[2:3]), wanted[2:3]).min() > 0.99999
        assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_a_thread_that_fails_fails_the_step() -> None:
    with loaded(minilm_path(), threads=2) as backend:
        texts = tokens_of(backend, TEXTS)
        too_long = Chunk(len(texts), 0, [101] * 600, 1)
        chunks = [Chunk(slot, 0, tokens, 1) for slot, tokens in enumerate(texts)]
        failed = backend.forward(Batch(BatchKind.EMBEDDING, [*chunks, too_long]))
        assert isinstance(failed, DecodeFailed)
        assert len(computed(backend, texts)) == len(texts)
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("settings", "is_safe"),
    [
        ({}, True),
        ({"rope_parameters": {"rope_type": "default"}}, True),
        ({"rope_parameters": {"full_attention": {"rope_type": "longrope"}}}, False),
        ({"rope_scaling": {"type": "dynamic"}}, False),
        ({"attention_type": "block_sparse"}, False),
    ],
)
def test_models_that_change_themselves_are_called_by_one_thread_at_a_time(
    settings: dict[str, Any], is_safe: bool
) -> None:
    assert keeps_nothing(SimpleNamespace(**settings)) is is_safe


# ---- embeddings ----


def test_100_texts_of_mixed_length_are_embedded_as_by_sentence_transformers() -> None:
    drawn = random.Random(1)
    words = [
        "time",
        "Year",
        "über",
        "[MASK]",
        "naïve",
        "東京",
        "tokenization",
        "unbelievably,",
        "a-b",
        "3.14",
        "house",
    ]
    texts = [
        " ".join(drawn.choices(words, k=round(2 ** (drawn.random() * 4.6)))) for _ in range(100)
    ]
    theirs = sentence_transformers.SentenceTransformer(str(minilm_path()), device="cpu")
    plain = [text.replace("[MASK]", "mask") for text in texts]
    with loaded(minilm_path()) as backend:
        assert backend.info.context == 256
        assert (backend.info.pooling, backend.info.is_normalised) == ("mean", True)
        tokens = tokens_of(backend, plain)
        assert max(map(len, tokens)) <= 256
        assert cosines(computed(backend, tokens), theirs.encode(plain)).min() >= 0.9999
        # What looks like a control token is text.
        assert backend.tokenize("[MASK]", add_special=False, parse_special=False) == (
            backend.tokenize("[ mask ]", add_special=False, parse_special=False)
        )


@pytest.mark.parametrize(
    ("pooling", "is_normalised", "activation"),
    [
        ("mean", False, "Tanh"),
        ("cls", True, ""),
        ("max", False, ""),
        ("mean_sqrt_len_tokens", False, ""),
        ("weightedmean", True, "GELU"),
        ("lasttoken", False, ""),
    ],
)
def test_every_pooling_is_that_of_sentence_transformers(
    folder: Path, pooling: str, activation: str, *, is_normalised: bool
) -> None:
    path = folder / "model"
    write_sentence_encoder(
        path, pooling=pooling, is_normalised=is_normalised, activation=activation
    )
    texts = [text for text in TEXTS if "[" not in text]
    theirs = sentence_transformers.SentenceTransformer(str(path), device="cpu").encode(texts)
    with loaded(path) as backend:
        assert backend.info.is_normalised is is_normalised
        np.testing.assert_allclose(computed(backend, tokens_of(backend, texts)), theirs, atol=1e-4)
        assert backend.info.embedding_length == theirs.shape[1]


_SIZE: Any = {
    "vocab_size": len(CONTROLS) + len(WORDS),
    "hidden_size": LENGTH,
    "intermediate_size": FEED_FORWARD,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


@pytest.mark.parametrize(
    ("kind", "pooling", "packs"),
    [
        ("bert", "mean", True),
        ("roberta", "mean", True),  # its positions begin behind its padding
        ("distilbert", "cls", True),
        ("modernbert", "mean", True),  # rotated positions, windows
        ("mpnet", "mean", False),  # makes a mask of its own
        ("llama", "lasttoken", False),  # would see what comes later
    ],
)
def test_short_texts_share_rows_where_nobody_can_tell(
    folder: Path, kind: str, pooling: str, *, packs: bool
) -> None:
    path = folder / "model"
    write_sentence_encoder(path, pooling=pooling, is_normalised=True)
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(kind, **_SIZE)
    transformers.AutoModel.from_config(config).save_pretrained(path)
    with loaded(path) as backend:
        assert isinstance(backend, TorchEncoder)
        assert backend.packs is packs
        texts = tokens_of(backend, ["cat", "the dog sat", "a", "report of finance " * 12] * 4)
        alone = [computed(backend, [text]) for text in texts]
        np.testing.assert_allclose(computed(backend, texts), np.concatenate(alone), atol=1e-5)


# ---- scores ----


@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
def test_labels_are_scored_as_by_the_pipeline_of_transformers(
    folder: Path, problem_type: str | None
) -> None:
    path = folder / "model"
    write_classifier(path, LABELS, problem_type=problem_type)
    pipeline = transformers.pipeline("text-classification", model=str(path), top_k=None)
    texts = [text for text in TEXTS if len(text) < 30 and "[" not in text]
    with loaded(path) as backend:
        assert backend.info.labels == tuple(LABELS)
        scores = computed(backend, tokens_of(backend, texts))
    for text, ours in zip(texts, scores, strict=True):
        (theirs,) = pipeline([text])
        by_label = {each["label"]: each["score"] for each in theirs}
        np.testing.assert_allclose(ours, [by_label[label] for label in LABELS], atol=1e-5)


def test_pairs_are_scored_as_by_a_cross_encoder(reranker: Path) -> None:
    documents = [text for text in TEXTS if "[" not in text]
    theirs = sentence_transformers.CrossEncoder(str(reranker), device="cpu", max_length=CONTEXT)
    pairs = [("the cat", document) for document in documents]
    expected = theirs.predict(pairs, activation_fn=torch.nn.Identity())
    with loaded(reranker) as backend:
        assert backend.info.rank_scores == "sigmoid"
        pair = backend.pair_format
        assert pair is not None
        query, *texts = (
            backend.tokenize(text, add_special=False, parse_special=False)
            for text in ("the cat", *documents)
        )
        joined = [[*pair.before, *query, *pair.between, *text, *pair.after] for text in texts]
        np.testing.assert_allclose(computed(backend, joined)[:, 0], expected, atol=1e-4)
        swapped = [*pair.before, *texts[0], *pair.between, *query, *pair.after]
        assert abs(computed(backend, [swapped])[0, 0] - expected[0]) > 1e-3


# ---- batches ----


def test_together_and_alone_are_the_same(classifier: Path) -> None:
    with loaded(classifier) as backend:
        tokens = tokens_of(backend, TEXTS)
        alone = np.concatenate([computed(backend, [each]) for each in tokens])
        np.testing.assert_allclose(computed(backend, tokens), alone, atol=1e-5)


def test_what_it_says_of_itself(classifier: Path) -> None:
    with loaded(classifier) as backend:
        info = backend.info
        assert (info.can_generate, info.can_embed, info.rank_scores) == (False, False, None)
        assert info.architecture == "BertForSequenceClassification"
        assert info.context == CONTEXT
        assert f"context 512 is cut to {CONTEXT}" in info.warnings[0]
        assert info.parallel == 256  # texts take no memory between steps
        assert backend.limits.embedding_batch_tokens == 2 * 512  # no stream waits for the next step
        assert not backend.limits.splits_prompts
        assert len(backend.tokenize("a " * 40, add_special=True, parse_special=False)) == 42


def test_garbage_is_told_from_scores(folder: Path) -> None:
    """A token whose embedding is not-a-number spoils its own text and no other."""
    path = folder / "model"
    write_classifier(path, LABELS)
    file = path / "model.safetensors"
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    broken = 5 + WORDS.index("finance")
    weights["bert.embeddings.word_embeddings.weight"][broken] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    with loaded(path) as backend:
        tokens = tokens_of(backend, ["the cat", "finance", "a dog"])
        chunks = [Chunk(slot, 0, each, 1) for slot, each in enumerate(tokens)]
        outputs = backend.forward(Batch(BatchKind.EMBEDDING, chunks))
        assert isinstance(outputs, Outputs)
        assert outputs.garbage == {1}
        assert sorted(outputs.vectors) == [0, 2]


# ---- what does not load ----


def test_labels_that_do_not_fit_the_weights_are_refused(folder: Path) -> None:
    path = folder / "model"
    write_classifier(path, LABELS)
    config = json.loads((path / "config.json").read_text())
    config["id2label"] = {"0": "one"}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CannotLoad) as refusal, loaded(path):
        pass
    assert refusal.value.permanent


def test_a_head_without_weights_is_refused_and_not_made_up(folder: Path) -> None:
    path = folder / "model"
    write_sentence_encoder(path, pooling="mean", is_normalised=True)
    (path / "modules.json").unlink()
    config = json.loads((path / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CannotLoad, match="classifier") as refusal, loaded(path):
        pass
    assert refusal.value.permanent
