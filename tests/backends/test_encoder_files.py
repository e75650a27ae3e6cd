"""What the files of an encoder's folder say, and what is said of those that are wrong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from openclawd.backends.base import CannotLoad
from openclawd.backends.encoder_files import (
    DenseFiles,
    Embedding,
    Labelling,
    is_encoder,
    read_encoder_files,
)

if TYPE_CHECKING:
    from pathlib import Path

BERT = {"architectures": ["BertModel"]}
MODULES = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3", "Normalize")]


def write(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def modules(*entries: tuple[str, str]) -> list[dict[str, Any]]:
    return [
        {"idx": number, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(entries)
    ]


def classifier(**config: Any) -> dict[str, Any]:
    return {"config.json": {"architectures": ["BertForSequenceClassification"], **config}}


def test_a_sentence_encoder(folder: Path) -> None:
    files = {
        "config.json": BERT,
        "modules.json": modules(*MODULES),
        "1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": False},
        "2_Dense/config.json": {"activation_function": "torch.nn.modules.activation.Tanh"},
        "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": True},
        "config_sentence_transformers.json": {"default_prompt_name": "query"},
    }
    assert is_encoder(write(folder, files))
    read = read_encoder_files(folder)
    dense = (DenseFiles(folder / "2_Dense", "Tanh"),)
    assert read.head == Embedding(("cls",), dense, is_normalised=True)
    assert (read.folder, read.architecture) == (folder, "BertModel")
    assert (read.max_tokens, read.lowers_case) == (256, True)
    assert "'query'" in read.warnings[0]


@pytest.mark.parametrize(
    ("pooling", "modes"),
    [
        ({"pooling_mode": "lasttoken"}, ("lasttoken",)),
        ({"pooling_mode": ["cls", "mean"]}, ("cls", "mean")),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("cls", "mean")),
        ({"word_embedding_dimension": 384}, ("mean",)),
    ],
)
def test_pooling_as_each_version_writes_it(
    folder: Path, pooling: dict[str, Any], modes: tuple[str, ...]
) -> None:
    files = {"modules.json": modules(*MODULES[:2]), "1_Pooling/config.json": pooling}
    read = read_encoder_files(write(folder, {"config.json": BERT, **files}))
    assert read.head == Embedding(modes, (), is_normalised=False)


def test_without_modules_vectors_are_normalised_means(folder: Path) -> None:
    read = read_encoder_files(write(folder, {"config.json": BERT}))
    assert read.head == Embedding(("mean",), (), is_normalised=True)
    assert read.max_tokens is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"id2label": {"1": "b", "0": "a"}},
            Labelling(("a", "b"), label_scores="softmax", rank_scores=None),
        ),
        ({}, Labelling(("LABEL_0", "LABEL_1"), label_scores="softmax", rank_scores=None)),
        (
            {"num_labels": 3, "problem_type": "multi_label_classification"},
            Labelling(("LABEL_0", "LABEL_1", "LABEL_2"), label_scores="sigmoid", rank_scores=None),
        ),
        (
            {"id2label": {"0": "good"}},
            Labelling(("good",), label_scores="sigmoid", rank_scores="sigmoid"),
        ),
        (
            {"id2label": {"0": "stars"}, "problem_type": "regression"},
            Labelling(("stars",), label_scores="raw", rank_scores="sigmoid"),
        ),
        (
            {
                "id2label": {"0": "good"},
                "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},
            },
            Labelling(("good",), label_scores="sigmoid", rank_scores="raw"),
        ),
    ],
)
def test_labels_and_their_scores(folder: Path, config: dict[str, Any], expected: Labelling) -> None:
    assert read_encoder_files(write(folder, classifier(**config))).head == expected


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("LlamaForCausalLM", False),
        ("GPT2LMHeadModel", False),
        ("T5ForConditionalGeneration", False),
        ("RobertaForMaskedLM", True),
        ("BertModel", True),
    ],
)
def test_what_an_encoder_is(folder: Path, architecture: str, *, expected: bool) -> None:
    files = {"config.json": {"architectures": [architecture]}}
    assert is_encoder(write(folder, files)) is expected
    assert is_encoder(write(folder, {"modules.json": modules(*MODULES[:2])}))


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "config.json cannot be used: No such file"),
        ({"config.json": "{"}, "config.json cannot be used: it is not JSON"),
        ({"config.json": "[" * 100_000}, "it is not JSON"),
        ({"config.json": []}, "it holds no map"),
        ({"config.json": {}}, "it names neither architectures nor a model_type"),
        ({"config.json": " " * 5_000_000}, "it has more than 4194304 bytes"),
        (classifier(id2label={"1": "a"}), "id2label has no label '0'"),
        (classifier(id2label={}), "id2label must name 1 to 10000 labels"),
        (classifier(num_labels=20_000), "id2label must name 1 to 10000 labels"),
        ({"modules.json": [1]}, "it is no list of modules"),
        ({"modules.json": modules(("", "Pooling"))}, "its first module is not a Transformer"),
        (
            {"modules.json": modules(("../../etc", "Transformer"))},
            "the path of a module leaves the model's folder",
        ),
        (
            {"config.json": BERT, "modules.json": modules(("", "Transformer"), ("2", "Dense"))},
            "its module Dense stands in a wrong place",
        ),
        (
            {
                "config.json": BERT,
                "modules.json": modules(*MODULES[:2], ("3_LSTM", "LSTM")),
                "1_Pooling/config.json": {},
            },
            "openclawd cannot compute module LSTM",
        ),
        (
            {
                "config.json": BERT,
                "modules.json": modules(*MODULES[:2]),
                "1_Pooling/config.json": {"pooling_mode": "median"},
            },
            "openclawd cannot pool by 'median'",
        ),
        (
            {
                "config.json": BERT,
                "modules.json": modules(*MODULES),
                "1_Pooling/config.json": {},
                "2_Dense/config.json": {"activation_function": "os.system"},
            },
            "openclawd does not know the activation 'system'",
        ),
    ],
)
def test_files_that_cannot_be_used(folder: Path, files: dict[str, Any], reason: str) -> None:
    with pytest.raises(CannotLoad) as refusal:
        read_encoder_files(write(folder, files))
    assert reason in refusal.value.message
    assert refusal.value.permanent
