"""Which layers of a model go to its GPUs, within the bytes that it may have on each.

Owns how the bytes of a layer are reckoned: from what llama.cpp says of the model before a weight is
read (`no_alloc`). The arithmetic of fitting them is `offload.py`'s.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, replace
from typing import Any, Final

import llama_cpp

from openclawd.backends.base import CannotLoad, LoadSpec
from openclawd.backends.offload import fit_layers

_GRAPH_WIDTHS: Final = 16
"""Numbers of 32 bits that computing one token needs at once, in widths of the model. By the look of
llama.cpp's compute buffers on a CPU; not measured on a card (docs/gpu.md)."""

_UBATCH_TOKENS: Final = 512
_TABLE_BITS: Final = 8.5
"""Least bits of a number in the vocabulary's table: quantised files keep it finer than the rest, in
Q6_K or Q8_0 (`llama_tensor_get_type` of llama.cpp's src/llama-quant.cpp)."""

_CACHE_BITS: Final = {
    "f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q5_1": 6.0, "q5_0": 5.5, "q4_1": 5.0,
    "q4_0": 4.5,
}  # fmt: skip
"""Of one number in a cache (ggml-common.h: a block of 32 numbers and its scales)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """`layers` are bytes of each layer with its part of the cache, and at last of the output; what
    computing needs on each GPU beside them are `graph_bytes`."""

    layers: list[int]
    graph_bytes: int


def fitted_to_gpus(spec: LoadSpec) -> LoadSpec:
    """The same with as many layers as fit on its GPUs, if that is to be found out. Raises
    `CannotLoad` for a model that needs a GPU where llama.cpp has none."""
    can_offload: bool = llama_cpp.llama_supports_gpu_offload()
    if spec.needs_gpu and not can_offload:
        raise CannotLoad(
            "llama.cpp was built without GPU support, and without_gpu is fail",
            hint="see CUDA in the README, or set without_gpu to cpu",
            permanent=True,
        )
    is_automatic = spec.gpu_layers is None and bool(spec.gpu_budgets)
    shape = shape_of(spec) if is_automatic and can_offload else None
    return spec if shape is None else fit(spec, shape)


def fit(spec: LoadSpec, shape: Shape) -> LoadSpec:
    """The same with a number of layers, and with shares of them for several GPUs."""
    budgets = [max(budget - shape.graph_bytes, 0) for budget in spec.gpu_budgets]
    offload = fit_layers(shape.layers, budgets, spec.options.get("tensor_split"))
    options = dict(spec.options)
    if len(budgets) > 1:
        options.setdefault("tensor_split", [float(count) for count in offload.counts])
    return replace(spec, gpu_layers=offload.num_layers, options=options)


def set_tensor_split(params: Any, shares: list[float]) -> None:
    """Structures of ctypes keep alive what their pointers are set to."""
    padded = shares + [0.0] * (llama_cpp.llama_max_devices() - len(shares))
    params.tensor_split = (ctypes.c_float * len(padded))(*padded)


def shape_of(spec: LoadSpec) -> Shape | None:
    """Layers are taken to be alike. None for a file of which llama.cpp says nothing: loading it
    tells why."""
    params = llama_cpp.llama_model_default_params()
    params.no_alloc = True
    params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE  # llama.cpp asserts that nothing is mapped
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(os.fsencode(spec.path), params)
    if not model:
        return None
    try:
        return _shape(spec, model)
    finally:
        llama_cpp.llama_model_free(model)


def _shape(spec: LoadSpec, model: Any) -> Shape:
    num_layers = max(llama_cpp.llama_model_n_layer(model), 1)
    size = llama_cpp.llama_model_size(model)
    vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    width = llama_cpp.llama_model_n_embd(model)
    bits = max(8 * size / max(llama_cpp.llama_model_n_params(model), 1), _TABLE_BITS)
    table = min(int(width * vocab_size * bits / 8), size)
    each = (size - table) // num_layers + _cache_bytes(spec, model)
    tokens = min(spec.batch_tokens, _UBATCH_TOKENS)
    graph = 4 * (tokens * width * _GRAPH_WIDTHS + spec.parallel * vocab_size)
    return Shape([each] * num_layers + [table], graph)


def _cache_bytes(spec: LoadSpec, model: Any) -> int:
    """Of one layer. Windows and recurrent states are smaller than what this says."""
    heads = max(llama_cpp.llama_model_n_head(model), 1)
    each_head = llama_cpp.llama_model_n_embd(model) // heads
    numbers = each_head * llama_cpp.llama_model_n_head_kv(model) * spec.kv_tokens
    names = (spec.options.get(f"cache_type_{which}", "f16") for which in "kv")
    return int(sum(numbers * _CACHE_BITS.get(name, 16.0) / 8 for name in names))
