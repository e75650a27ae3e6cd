"""Writes tiny encoders as folders that transformers reads: real architectures, random weights.

Without torch, whose import takes longer than all else here. Source of the names: transformers,
`models/bert/modeling_bert.py`, and the layout of sentence-transformers.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

CONTEXT = 64
LENGTH = 32
FEED_FORWARD = 64
NUM_LAYERS = 2
CONTROLS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["a", "the", "cat", "dog", "report", "of", "finance", "sat", "[", "]", "sep", "##s"]
_VOCABULARY = {word: number for number, word in enumerate(CONTROLS + WORDS)}

Tensors = dict[str, np.ndarray]


def write_classifier(folder: Path, labels: Sequence[str], **config: Any) -> None:
    """A BERT for sequence classification, with these labels."""
    weights = _Weights()
    tensors = weights.bert("bert.") | weights.linear("classifier", LENGTH, len(labels))
    named = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    _write(folder, tensors, architectures=["BertForSequenceClassification"], **named, **config)


def write_sentence_encoder(
    folder: Path, *, pooling: str, is_normalised: bool, activation: str = ""
) -> None:
    """A BERT that embeds; with a dense layer if an `activation` is given."""
    weights = _Weights()
    _write(folder, weights.bert(""), architectures=["BertModel"])
    modules = ["", "1_Pooling"]
    _write_json(folder / "1_Pooling", word_embedding_dimension=LENGTH, pooling_mode=pooling)
    if activation:
        modules.append("2_Dense")
        function = f"torch.nn.modules.activation.{activation}"
        features = {"in_features": LENGTH, "out_features": LENGTH // 2, "bias": True}
        _write_json(folder / "2_Dense", **features, activation_function=function)
        dense = weights.linear("linear", LENGTH, LENGTH // 2)
        save_file(dense, folder / "2_Dense" / "model.safetensors", {"format": "pt"})
    if is_normalised:
        modules.append("3_Normalize")
    names = ["Transformer", *(path.partition("_")[2] for path in modules[1:])]
    entries = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{name}"}
        for n, (path, name) in enumerate(zip(modules, names, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(entries))


class _Weights:
    """Always the same random numbers in the same order."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(1)

    def matrix(self, *shape: int) -> np.ndarray:
        return (self._random.standard_normal(shape) / 2).astype("<f4")

    def linear(self, name: str, num_in: int, num_out: int) -> Tensors:
        return {
            f"{name}.weight": self.matrix(num_out, num_in),
            f"{name}.bias": self.matrix(num_out),
        }

    def bert(self, prefix: str) -> Tensors:
        rows = {"word": len(_VOCABULARY), "position": CONTEXT, "token_type": 2}
        tensors = {
            f"{prefix}embeddings.{name}_embeddings.weight": self.matrix(number, LENGTH)
            for name, number in rows.items()
        }
        tensors |= _norm(f"{prefix}embeddings.LayerNorm")
        for number in range(NUM_LAYERS):
            tensors |= self._layer(f"{prefix}encoder.layer.{number}")
        return tensors | self.linear(f"{prefix}pooler.dense", LENGTH, LENGTH)

    def _layer(self, name: str) -> Tensors:
        tensors: Tensors = {}
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            tensors |= self.linear(f"{name}.attention.{part}", LENGTH, LENGTH)
        tensors |= self.linear(f"{name}.intermediate.dense", LENGTH, FEED_FORWARD)
        tensors |= self.linear(f"{name}.output.dense", FEED_FORWARD, LENGTH)
        return (
            tensors
            | _norm(f"{name}.attention.output.LayerNorm")
            | _norm(f"{name}.output.LayerNorm")
        )


def _norm(name: str) -> Tensors:
    return {f"{name}.weight": np.ones(LENGTH, "<f4"), f"{name}.bias": np.zeros(LENGTH, "<f4")}


def _write(folder: Path, tensors: Mapping[str, np.ndarray], **config: Any) -> None:
    _write_json(
        folder,
        model_type="bert",
        vocab_size=len(_VOCABULARY),
        hidden_size=LENGTH,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        intermediate_size=FEED_FORWARD,
        max_position_embeddings=CONTEXT,
        type_vocab_size=2,
        hidden_act="gelu",
        pad_token_id=0,
        dtype="float32",
        **config,
    )
    save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
    _tokenizer().save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    }
    for name, text in zip(("pad", "unk", "cls", "sep", "mask"), CONTROLS, strict=True):
        settings[f"{name}_token"] = text
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(_VOCABULARY, unk_token="[UNK]"))
    tokenizer.add_special_tokens(CONTROLS)
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(text, _VOCABULARY[text]) for text in ("[CLS]", "[SEP]")],
    )
    tokenizer.enable_truncation(8)  # as real files do: it must not be obeyed
    return tokenizer


def _write_json(folder: Path, **content: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))
