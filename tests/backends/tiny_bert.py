"""Writes a tiny BERT encoder as a GGUF file: real architecture, random weights, 60 kB.

Source of the layout: llama.cpp, `ggml/include/gguf.h`; of the keys and tensors:
`gguf-py/gguf/constants.py`, MODEL_ARCH.BERT.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

CONTEXT = 64
LENGTH = 32
FEED_FORWARD = 64
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [
    "▁" + word for word in ("a", "the", "cat", "dog", "report", "of", "finance", "sat")
]
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
ALIGNMENT = 32


def write_tiny_bert(path: Path) -> None:
    tensors = _tensors()
    infos, offset = b"", 0
    for name, values in tensors.items():
        infos += _string(name) + struct.pack("<I", values.ndim)
        infos += struct.pack(f"<{values.ndim}Q", *reversed(values.shape))
        infos += struct.pack("<IQ", 0, offset)  # type 0: float32
        offset += len(_padded(values.tobytes()))
    keys = _keys()
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(keys))
    head = header + b"".join(_string(key) + value for key, value in keys.items()) + infos
    data = b"".join(_padded(values.tobytes()) for values in tensors.values())
    path.write_bytes(_padded(head) + data)


def _keys() -> dict[str, bytes]:
    bert = {
        "block_count": _value(UINT32, 1),
        "context_length": _value(UINT32, CONTEXT),
        "embedding_length": _value(UINT32, LENGTH),
        "feed_forward_length": _value(UINT32, FEED_FORWARD),
        "attention.head_count": _value(UINT32, 4),
        "attention.layer_norm_epsilon": _value(FLOAT32, 1e-12),
        "attention.causal": _value(BOOL, 0),
        "pooling_type": _value(UINT32, 1),
    }
    tokenizer = {
        "model": _value(STRING, "bert"),
        "token_type_count": _value(UINT32, 2),
        "tokens": _array(STRING, WORDS),
        "token_type": _array(INT32, [3] * 5 + [1] * (len(WORDS) - 5)),
        "unknown_token_id": _value(UINT32, 1),
        "bos_token_id": _value(UINT32, 2),
        "cls_token_id": _value(UINT32, 2),
        "eos_token_id": _value(UINT32, 3),
        "seperator_token_id": _value(UINT32, 3),
        "padding_token_id": _value(UINT32, 0),
        "mask_token_id": _value(UINT32, 4),
    }
    return {
        "general.architecture": _value(STRING, "bert"),
        "general.name": _value(STRING, "tiny"),
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


def _value(kind: int, value: Any) -> bytes:
    return struct.pack("<I", kind) + _bare(kind, value)


def _array(kind: int, values: list[Any]) -> bytes:
    head = struct.pack("<IIQ", ARRAY, kind, len(values))
    return head + b"".join(_bare(kind, value) for value in values)


def _bare(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return _string(value)
    return struct.pack({UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?"}[kind], value)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)
