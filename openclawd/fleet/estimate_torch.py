"""How much memory a torch model will take, by arithmetic. Pure.

Owns the formulas of the torch backend: weights in the number format they are computed in, a cache
for every sequence, the activations of one step, and a process that is larger than llama.cpp's.
Measured with torch 2.13 and transformers 5.23 on a CPU, 2026-11-29 (docs/memory.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from openclawd.fleet.parts import Part, kept_part
from openclawd.fleet.residency import HOST

if TYPE_CHECKING:
    from openclawd.worker.facts import ModelFacts
    from openclawd.worker.messages import Load

_BITS: Final = {"float32": 32, "bfloat16": 16, "float16": 16}
_QUANTISED_BITS: Final = {"8bit": 8, "4bit": 5}
"""With the scales of each block of weights."""

_FLOAT: Final = 4
TORCH_LIBRARIES: Final = 120 * 2**20
"""Pages of torch's libraries that are mapped; other torch workers share them."""

_PROCESS: Final = 250 * 2**20
"""Of its own, with transformers, the classes of one model, and what oneDNN keeps."""

_PER_TOKEN: Final = 1000
"""Of the vocabulary: tokenizers' tables, and ours of each token's bytes."""

ENCODER_BUDGETS: Final = 2
"""`STEP_BUDGETS` of backends/torch_encoder_load.py, which the daemon may not import."""

_ROWS: Final = 8
"""Rows as wide as the model that a layer has at once, beside two of its feed-forward part."""


def torch_parts(facts: ModelFacts, load: Load, *, device: str = HOST) -> list[Part]:
    """What one worker takes; weights, cache and activations on `device`."""
    bits = _BITS.get(str(load.options.get("dtype")), facts.stored_bits or 32)
    process = TORCH_LIBRARIES + _PROCESS + _PER_TOKEN * facts.vocab_size
    parts = [
        _weights(facts, load, bits, device),
        Part("copy of the embeddings", _embeddings(facts, bits), "as transformers loads", device),
        Part("KV cache", *_cache(facts, load, bits), device),
        *_kept(facts, load, bits),
        Part("activations", *_activations(facts, load, bits), device),
        Part("process", process, "interpreter, torch and vocabulary"),
    ]
    return [part for part in parts if part.num_bytes]


def _weights(facts: ModelFacts, load: Load, bits: int, device: str) -> Part:
    """In the format of the files they are pages of these, on a CPU."""
    stored = facts.stored_bits or bits
    bits = _QUANTISED_BITS.get(str(load.options.get("quantize")), bits)
    is_mapped = bits == stored and device == HOST
    how = f"all tensors in {bits} bits"
    return Part("weights", facts.weights_bytes * bits // stored, how, device, is_mapped)


def _embeddings(facts: ModelFacts, bits: int) -> int:
    return 0 if facts.is_encoder else facts.vocab_size * facts.embedding_width * bits // 8


def _cache(facts: ModelFacts, load: Load, bits: int) -> tuple[int, str]:
    width = sum(each.count * (each.key_width + each.value_width) for each in facts.attention)
    size = load.kv_tokens * width * bits // 8
    return size, f"{load.kv_tokens} tokens, {round(width * bits / 8 / 1024, 1)} KiB each"


def _kept(facts: ModelFacts, load: Load, bits: int) -> list[Part]:
    cache, _ = _cache(facts, load, bits)
    return [kept_part(cache, load)] if cache and load.shares_prefixes else []


def _activations(facts: ModelFacts, load: Load, bits: int) -> tuple[int, str]:
    """Of a step of `batch_tokens`, an encoder's of twice as many, or as its longest input has."""
    at_least = load.context if facts.is_encoder else load.parallel
    tokens = max(at_least, load.batch_tokens * (ENCODER_BUDGETS if facts.is_encoder else 1))
    row = _ROWS * facts.embedding_width + 2 * facts.feed_forward_width
    logits = 0 if facts.is_encoder else load.parallel * facts.vocab_size * _FLOAT
    return tokens * row * bits // 8 + logits, f"{tokens} tokens at once"
