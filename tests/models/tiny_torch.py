"""Writes tiny encoders as folders that transformers reads: real architectures, random weights.

Importing this brings torch and transformers: do it in the test that needs them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CONTEXT = 64
LENGTH = 32
CONTROLS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["a", "the", "cat", "dog", "report", "of", "finance", "sat", "[", "]", "sep", "##s"]


def write_classifier(folder: Path, labels: Sequence[str], *, seed: int = 1, **config: Any) -> None:
    """A BERT for sequence classification, with these labels."""
    named = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    torch.manual_seed(seed)
    model = transformers.BertForSequenceClassification(_bert(**named, **config))
    torch.nn.init.normal_(model.classifier.weight)  # as small as they come, all texts are alike
    _write(folder, model)


def write_sentence_encoder(
    folder: Path, *, pooling: str, is_normalised: bool, activation: str = ""
) -> None:
    """A BERT that embeds; with a dense layer if an `activation` is given."""
    torch.manual_seed(1)
    _write(folder, transformers.BertModel(_bert()))
    modules = ["", "1_Pooling"]
    _write_json(folder / "1_Pooling", word_embedding_dimension=LENGTH, pooling_mode=pooling)
    if activation:
        modules.append("2_Dense")
        function = f"torch.nn.modules.activation.{activation}"
        features = {"in_features": LENGTH, "out_features": LENGTH // 2, "bias": True}
        _write_json(folder / "2_Dense", **features, activation_function=function)
        state = torch.nn.Linear(LENGTH, LENGTH // 2).state_dict(prefix="linear.")
        save_file(state, folder / "2_Dense" / "model.safetensors")
    if is_normalised:
        modules.append("3_Normalize")
    names = ["Transformer", *(path.partition("_")[2] for path in modules[1:])]
    entries = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{name}"}
        for n, (path, name) in enumerate(zip(modules, names, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(entries))


def _bert(**more: Any) -> transformers.BertConfig:
    return transformers.BertConfig(
        vocab_size=len(CONTROLS) + len(WORDS),
        hidden_size=LENGTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * LENGTH,
        max_position_embeddings=CONTEXT,
        initializer_range=0.5,
        **more,
    )


def _write(folder: Path, model: Any) -> None:
    model.eval().save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(CONTROLS + WORDS)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(text, vocabulary[text]) for text in ("[CLS]", "[SEP]")],
    )
    tokenizer.enable_truncation(8)  # as real files do: it must not be obeyed
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=CONTEXT,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _write_json(folder: Path, **content: Any) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(content))
