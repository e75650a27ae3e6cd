"""Writes a tiny BERT encoder as a GGUF file: real architecture, random weights, 60 kB.

Source of the keys and tensors: llama.cpp, `gguf-py/gguf/constants.py`, MODEL_ARCH.BERT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from models.gguf_writer import write_gguf

if TYPE_CHECKING:
    from pathlib import Path

    from models.gguf_writer import Value

CONTEXT = 64
LENGTH = 32
FEED_FORWARD = 64
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [
    "▁" + word for word in ("a", "the", "cat", "dog", "report", "of", "finance", "sat")
]


def write_tiny_bert(path: Path) -> None:
    write_gguf(path, _keys(), _tensors())


def _keys() -> dict[str, Value]:
    bert = {
        "block_count": 1,
        "context_length": CONTEXT,
        "embedding_length": LENGTH,
        "feed_forward_length": FEED_FORWARD,
        "attention.head_count": 4,
        "attention.layer_norm_epsilon": 1e-12,
        "attention.causal": False,
        "pooling_type": 1,
    }
    tokenizer = {
        "model": "bert",
        "token_type_count": 2,
        "tokens": WORDS,
        "token_type": [3] * 5 + [1] * (len(WORDS) - 5),
        "unknown_token_id": 1,
        "bos_token_id": 2,
        "cls_token_id": 2,
        "eos_token_id": 3,
        "seperator_token_id": 3,
        "padding_token_id": 0,
        "mask_token_id": 4,
    }
    return {
        "general.architecture": "bert",
        "general.name": "tiny",
        **{f"bert.{name}": value for name, value in bert.items()},
        **{f"tokenizer.ggml.{name}": value for name, value in tokenizer.items()},
    }


def _tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)

    def weights(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / 4).astype("<f4")

    tensors = {
        "token_embd.weight": weights(len(WORDS), LENGTH),
        "position_embd.weight": weights(CONTEXT, LENGTH),
        "token_types.weight": weights(2, LENGTH),
    }
    for name in ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"):
        tensors[f"{name}.weight"] = np.ones(LENGTH, "<f4")
        tensors[f"{name}.bias"] = np.zeros(LENGTH, "<f4")
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        tensors[f"blk.0.{name}.weight"] = weights(LENGTH, LENGTH)
        tensors[f"blk.0.{name}.bias"] = weights(LENGTH)
    tensors["blk.0.ffn_up.weight"] = weights(FEED_FORWARD, LENGTH)
    tensors["blk.0.ffn_up.bias"] = weights(FEED_FORWARD)
    tensors["blk.0.ffn_down.weight"] = weights(LENGTH, FEED_FORWARD)
    tensors["blk.0.ffn_down.bias"] = weights(LENGTH)
    return tensors
