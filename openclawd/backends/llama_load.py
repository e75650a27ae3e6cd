"""Loading a GGUF file into llama.cpp: parameters, progress, and one sentence when it fails.

Owns how a model and its context are made and described. What is computed with them is `llama.py`'s.
"""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import llama_cpp

from openclawd.backends import llama_log
from openclawd.backends.base import BatchLimits, CannotLoad, LoadAborted, LoadSpec, ModelInfo
from openclawd.backends.gguf_file import check_gguf_file
from openclawd.backends.llama_adapters import Adapters
from openclawd.backends.llama_aside import Aside
from openclawd.backends.llama_libraries import load_backends
from openclawd.backends.llama_offload import fitted_to_gpus
from openclawd.backends.llama_options import apply_options
from openclawd.backends.llama_waits import cpus_of_process

if TYPE_CHECKING:
    from collections.abc import Callable

EMBEDDING_BATCH_TOKENS: Final = 128
"""Tokens per step of an embedding with a generating model. Such a step makes logits for every one
of them, and their buffer stays: 128 tokens of a vocabulary of 128k are 64 MiB."""

MAX_PREFIX_TAGS: Final = 128
"""Most kept prefixes: far more than a cache of today's sizes can hold of useful length."""

MAX_ENCODER_SLOTS: Final = 256
"""Texts in one step of an encoder: as many as llama.cpp has sequence ids (LLAMA_MAX_SEQ). They take
no memory between steps, so they are not counted by `parallel`."""

UBATCH_TOKENS: Final = 512
"""llama.cpp's own default for what it computes at once."""

_ATTENTION_TILE: Final = 64
"""Tokens (`GGML_FA_TILE_Q` of llama.cpp's ggml/src/ggml-cpu/common.h)."""

ASIDE_TOKENS: Final = 256
"""In parts of so many a prompt of 2,000 tokens takes 1.06 times as long as in parts of 512, in half
as many 1.17 times; and the longest operation takes half as long as in parts of 512 (SmolLM2 on two
cores, 2026-11-24)."""

MEAN: Final = "mean"
FIRST: Final = "cls"
LAST: Final = "lasttoken"
_RANK: Final = "rank"
_POOLING: Final = {
    str(llama_cpp.LLAMA_POOLING_TYPE_CLS): FIRST,
    str(llama_cpp.LLAMA_POOLING_TYPE_LAST): LAST,
    str(llama_cpp.LLAMA_POOLING_TYPE_RANK): _RANK,
}
"""By what a file holds under `pooling_type`."""

_ALL_LAYERS: Final = -1
_TEXT_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class Loaded:
    """llama.cpp's objects and what is known of them. Freed by `free`, in that order."""

    model: Any
    context: Any
    adapters: Adapters
    info: ModelInfo
    limits: BatchLimits
    is_encoder: bool
    aside: Aside | None = None

    def free(self) -> None:
        if self.aside is not None:
            self.aside.close()
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


def load_model(spec: LoadSpec, on_progress: Callable[[float], bool]) -> Loaded:
    """Read the file and make a context. Raises `CannotLoad` and `LoadAborted`."""
    check_gguf_file(spec.path)
    llama_log.install()
    load_backends()
    llama_log.take_errors()
    _check_parallel(spec)
    spec = fitted_to_gpus(spec)
    model_params, context_params = _params(spec)
    model = _read_model(spec, model_params, on_progress)
    try:
        _check_architecture(spec, model)
        return _with_context(spec, model, context_params, Adapters(model, spec.adapters))
    except BaseException:
        llama_cpp.llama_model_free(model)
        raise


def _check_parallel(spec: LoadSpec) -> None:
    most = llama_cpp.llama_max_parallel_sequences()
    if spec.parallel > most:
        raise CannotLoad(
            f"parallel is {spec.parallel}, but llama.cpp computes {most} sequences at once at most",
            hint=f"set parallel to {most} or less, and more workers",
            permanent=True,
        )


def _params(spec: LoadSpec) -> tuple[Any, Any]:
    model = llama_cpp.llama_model_default_params()
    model.n_gpu_layers = _ALL_LAYERS if spec.gpu_layers is None else spec.gpu_layers
    context = llama_cpp.llama_context_default_params()
    context.n_ctx = spec.kv_tokens
    context.n_threads = context.n_threads_batch = spec.threads or len(cpus_of_process())
    context.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_NONE
    # Sequence ids of kept prefixes are not counted: they never stand in a batch, and a unified
    # cache takes any id below LLAMA_MAX_SEQ (llama-kv-cache.cpp, `seq_to_stream`). Each that is
    # counted costs a row of logits.
    context.n_seq_max = spec.parallel
    context.kv_unified = spec.shares_cells
    # Layers with a sliding window keep what a window needs of each sequence, not whole contexts:
    # less memory, and fewer cells to pass over. Whole ones would only serve prefixes that are cut
    # anywhere, and even then llama.cpp gives away cells that have left the window
    # (llama-kv-cache.cpp, `find_slot`).
    context.swa_full = False
    context.no_perf = True
    apply_options(spec.options, model, context)
    return model, context


def _read_model(spec: LoadSpec, params: Any, on_progress: Callable[[float], bool]) -> Any:
    was_aborted = False

    def receive(fraction: float, user_data: object) -> bool:
        nonlocal was_aborted
        del user_data
        was_aborted = not on_progress(fraction)
        return not was_aborted

    # Held until the call returns: llama.cpp has only a pointer to it.
    callback = llama_cpp.llama_progress_callback(receive)
    params.progress_callback = callback
    model = llama_cpp.llama_model_load_from_file(os.fsencode(spec.path), params)
    if was_aborted:
        if model:
            llama_cpp.llama_model_free(model)
        raise LoadAborted
    if not model:
        raise _explain(spec)
    return model


def _check_architecture(spec: LoadSpec, model: Any) -> None:
    """Refuse what loads but cannot be computed by the one loop there is."""
    kind = ""
    if llama_cpp.llama_model_has_encoder(model):
        kind = "an encoder-decoder model"
    elif llama_cpp.llama_model_is_diffusion(model):
        kind = "a diffusion model"
    if kind:
        raise CannotLoad(
            f"{spec.path} holds {kind} ({_architecture(model)}), which openclawd cannot run",
            hint="use a decoder model for text, or an encoder model for embeddings",
            permanent=True,
        )


def _with_context(spec: LoadSpec, model: Any, params: Any, adapters: Adapters) -> Loaded:
    limits = BatchLimits(
        batch_tokens=max(spec.batch_tokens, spec.parallel),
        embedding_batch_tokens=min(EMBEDDING_BATCH_TOKENS, spec.kv_tokens),
        splits_prompts=True,
        num_prefix_tags=_num_prefix_tags(spec, model),
        can_drop_last=not _has_state(model),
        tile_tokens=_tile_tokens(spec, model, params),
        aside_tokens=_aside_tokens(spec, model, params),
        scans_all_cells=_num_gpu_layers(spec, model) < llama_cpp.llama_model_n_layer(model),
    )
    context = _make_context(spec, model, params, limits)
    is_encoder = _is_encoder(context)
    length = spec.context
    if is_encoder:  # it must see a whole input at once: make room for that
        llama_cpp.llama_free(context)
        length = min(length, llama_cpp.llama_model_n_ctx_train(model))
        budget = max(length, spec.batch_tokens, spec.parallel)
        limits = BatchLimits(
            batch_tokens=budget, embedding_batch_tokens=budget, splits_prompts=False
        )
        slots = max(spec.parallel, min(MAX_ENCODER_SLOTS, budget))
        spec = replace(spec, parallel=slots, kv_tokens=slots * length)  # cells there are none
        params.n_seq_max, params.kv_unified = slots, True
        context = _make_context(spec, model, params, limits)
    info = _describe(spec, model, params, length=length, is_encoder=is_encoder)
    aside = _make_aside(spec, model, params, context, adapters, limits)
    return Loaded(model, context, adapters, info, limits, is_encoder, aside)


def _tile_tokens(spec: LoadSpec, model: Any, params: Any) -> int | None:
    """On a CPU, flash attention computes whole tiles from `_ATTENTION_TILE` tokens on: right for a
    prompt, but each decode in a tile makes it compute another sequence's cells for all tokens of
    the tile. 31 decodes and 64 prompt tokens take 1.34 times as long together as apart, 16 and 64
    1.2 times; fewer than a tile are quicker together (SmolLM2 on two cores, 2026-11-23)."""
    is_on_cpu = _num_gpu_layers(spec, model) == 0
    has_tiles = (
        params.flash_attn_type != llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        and params.type_k == params.type_v
        and params.type_k in (llama_cpp.GGML_TYPE_F16, llama_cpp.GGML_TYPE_F32)
    )
    return _ATTENTION_TILE if is_on_cpu and has_tiles else None


def _aside_tokens(spec: LoadSpec, model: Any, params: Any) -> int | None:
    """Where large parts of prompts are so much quicker than small ones that it is worth a context
    of their own, and cells can be given from one sequence to another."""
    is_of_use = spec.computes_aside and spec.parallel > 1
    has_room = min(spec.batch_tokens, spec.context) >= ASIDE_TOKENS
    is_possible = _num_prefix_tags(spec, model) > 0 and _tile_tokens(spec, model, params)
    return ASIDE_TOKENS if is_of_use and has_room and is_possible else None


def _make_aside(
    spec: LoadSpec, model: Any, params: Any, context: Any, adapters: Adapters, limits: BatchLimits
) -> Aside | None:
    if limits.aside_tokens is None:
        return None
    try:
        return Aside(
            model,
            params,
            context,
            adapters,
            context_tokens=spec.context,
            max_tokens=limits.aside_tokens,
            scratch=spec.parallel + limits.num_prefix_tags,
        )
    except MemoryError:
        llama_cpp.llama_free(context)
        raise _no_memory(spec) from None


def _num_prefix_tags(spec: LoadSpec, model: Any) -> int:
    """How many prefixes can be kept. None where a part of a sequence is not enough to go on from: a
    recurrent state is only that of the last token, a sliding window has forgotten the first."""
    if not spec.shares_cells or _has_state(model) or _has_window(model):
        return 0
    most: int = llama_cpp.llama_max_parallel_sequences() - 1  # one is for what is computed aside
    return max(0, min(MAX_PREFIX_TAGS, most - spec.parallel))


def _has_state(model: Any) -> bool:
    """That of the last token alone; nothing leads back from it."""
    is_recurrent: bool = llama_cpp.llama_model_is_recurrent(model)
    return is_recurrent or llama_cpp.llama_model_is_hybrid(model)


def _has_window(model: Any) -> bool:
    size: int = llama_cpp.llama_model_n_swa(model)
    return size > 0


def _make_context(spec: LoadSpec, model: Any, params: Any, limits: BatchLimits) -> Any:
    largest = max(limits.batch_tokens, limits.embedding_batch_tokens)
    params.n_batch = largest
    # Between two pieces of a batch llama.cpp gives away cells that guesses have pushed out of the
    # window, and which are in it again when those are dropped: windows need a batch in one piece.
    is_whole = not limits.splits_prompts or _has_window(model)
    params.n_ubatch = largest if is_whole else min(largest, UBATCH_TOKENS)
    # One output per sequence, or per token of an embedding; llama.cpp's default reserves logits for
    # every token of the largest batch.
    params.n_outputs_max = max(spec.parallel, limits.embedding_batch_tokens)
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise _explain_context(spec)
    return context


def _is_encoder(context: Any) -> bool:
    has_memory = llama_cpp.llama_get_memory(context) is not None
    return not (has_memory and llama_cpp.llama_get_causal_attn(context))


# ---- what a loaded model is ----


def _describe(
    spec: LoadSpec, model: Any, params: Any, *, length: int, is_encoder: bool
) -> ModelInfo:
    context_train = llama_cpp.llama_model_n_ctx_train(model)
    return ModelInfo(
        description=_text(llama_cpp.llama_model_desc, model),
        architecture=_architecture(model),
        quantization=_quantization(model),
        parameters=llama_cpp.llama_model_n_params(model),
        size_bytes=llama_cpp.llama_model_size(model),
        context_train=context_train,
        context=length,
        parallel=spec.parallel,
        kv_tokens=spec.kv_tokens,
        embedding_length=llama_cpp.llama_model_n_embd_out(model),
        vocab_size=llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)),
        can_generate=not is_encoder,
        can_embed=_pooling(model) != _RANK,
        threads=params.n_threads,
        gpu_layers=_num_gpu_layers(spec, model),
        devices=("gpu",) if llama_cpp.llama_supports_gpu_offload() else ("cpu",),
        warnings=_warnings(spec, context_train, length=length),
        pooling=_pooling(model),
    )


def _warnings(spec: LoadSpec, context_train: int, *, length: int) -> tuple[str, ...]:
    if not llama_cpp.llama_supports_gpu_offload() and spec.gpu_layers:
        return (*_length_warnings(spec, context_train, length=length), _NO_OFFLOAD)
    return _length_warnings(spec, context_train, length=length)


_NO_OFFLOAD: Final = (
    "gpu_layers has no effect: this llama.cpp was built without GPU support (CUDA in the README)"
)


def _length_warnings(spec: LoadSpec, context_train: int, *, length: int) -> tuple[str, ...]:
    if length < spec.context:
        return (f"context {spec.context} is cut to {length}, the most there is for a sequence",)
    if length <= context_train:
        return ()
    trained = f"the {context_train} tokens the model was trained for"
    return (f"context {spec.context} is longer than {trained}; answers get worse beyond those",)


def _pooling(model: Any) -> str:
    """How vectors of texts come from those of their tokens, as the file says; by default `mean`."""
    key = f"{_architecture(model)}.pooling_type".encode()
    found = _text(
        lambda model, buffer, size: llama_cpp.llama_model_meta_val_str(model, key, buffer, size),
        model,
    )
    return _POOLING.get(found, MEAN)


def _num_gpu_layers(spec: LoadSpec, model: Any) -> int:
    if not llama_cpp.llama_supports_gpu_offload():
        return 0
    every = int(llama_cpp.llama_model_n_layer(model)) + 1  # the output layer counts as one
    return every if spec.gpu_layers is None else min(spec.gpu_layers, every)


def _quantization(model: Any) -> str:
    name: bytes | None = llama_cpp.llama_ftype_name(llama_cpp.llama_model_ftype(model))
    return name.decode() if name else ""


def _architecture(model: Any) -> str:
    key = b"general.architecture"
    return _text(
        lambda model, buffer, size: llama_cpp.llama_model_meta_val_str(model, key, buffer, size),
        model,
    )


def _text(read: Callable[[Any, Any, int], int], model: Any) -> str:
    buffer = ctypes.create_string_buffer(_TEXT_BYTES)
    read(model, buffer, _TEXT_BYTES)
    return buffer.value.decode("utf-8", "replace")


# ---- why it did not load ----

_CUT: Final = re.compile(
    r"not within the file bounds|failed to read|tensor data|unexpected end|corrupted|incomplete"
)
_UNKNOWN_ARCHITECTURE: Final = re.compile(r"unknown model architecture: '([^']*)'")
_NO_MEMORY: Final = re.compile(
    r"unable to allocate|failed to allocate|out of memory|cannot allocate|bad_alloc"
    r"|failed to create .*buffer|alloc_buffer|allocation failed",
    re.IGNORECASE,
)


def _explain(spec: LoadSpec) -> CannotLoad:
    """What llama.cpp's last errors mean for the person who configured the model."""
    errors = llama_log.take_errors()
    said = "\n".join(errors)
    if match := _UNKNOWN_ARCHITECTURE.search(said):
        return CannotLoad(
            f"{spec.path} has the architecture {match[1]!r}, which this llama.cpp does not know",
            hint="upgrade llama-cpp-python, or use another model",
            permanent=True,
        )
    if _NO_MEMORY.search(said):
        return _no_memory(spec)
    if _CUT.search(said):
        return CannotLoad(
            f"{spec.path} is cut off or damaged: {llama_log.reason(errors)}",
            hint="copy or download the file again and compare its checksum",
            permanent=True,
        )
    return CannotLoad(
        f"llama.cpp cannot load {spec.path}: {llama_log.reason(errors)}",
        hint="see the worker's log lines before this one, or try another file of this model",
        permanent=True,
    )


def _explain_context(spec: LoadSpec) -> CannotLoad:
    errors = llama_log.take_errors()
    if not errors or _NO_MEMORY.search("\n".join(errors)):
        return _no_memory(spec)
    return CannotLoad(
        f"llama.cpp cannot make a context for {spec.path}: {llama_log.reason(errors)}",
        hint="look at the model's 'options' in the configuration",
        permanent=True,
    )


def _no_memory(spec: LoadSpec) -> CannotLoad:
    return CannotLoad(
        f"not enough memory for {spec.path} with {spec.kv_tokens} KV tokens"
        f" ({spec.parallel} sequences, context {spec.context})",
        hint="lower context, parallel or gpu_layers of the model, set prefill_aside: false, or"
        " unload another model",
        permanent=False,
    )
