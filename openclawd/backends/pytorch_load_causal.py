"""Loading a causal language model: its limits, its KV cells, and whether it can be served at all.

Owns what is refused after a look at the model, and how a loaded one is described. How folders are
read is `pytorch_load.py`'s, what is computed `pytorch_causal.py`'s.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from openclawd.backends import pytorch_attention
from openclawd.backends.base import BatchLimits, CannotLoad, ModelInfo
from openclawd.backends.pytorch_attention import KvPool, Step, prompt_part
from openclawd.backends.pytorch_causal import CausalBackend
from openclawd.backends.pytorch_load import load_vocab, load_weights, no_memory
from openclawd.backends.pytorch_sixteen_bits import is_slow, multiply_in_32_bits, warnings_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from openclawd.backends.base import LoadSpec
    from openclawd.backends.pytorch_options import Options
    from openclawd.backends.pytorch_vocab import TorchVocab

EMBEDDING_BATCH_TOKENS: Final = 512

MAX_PREFIX_TAGS: Final = 128
"""Most kept prefixes, as of the llama backend."""

_PROBE_TEXT: Final = "The old man opened the letter and read it twice."
"""Ordinary words. After control tokens, of which models have learned nothing, rounding to 16 bits
may move the logits by as much as they differ (SmolLM2 on an EPYC without AVX-512, 2026-11-30)."""

_PROBE_TOKENS: Final = 8
_PROBE_PARTS: Final = ([_PROBE_TOKENS], [3, 4, 1])
_MOST_CHANGE: Final = 0.1
"""Of the logits' own spread. Rounding to 16 bits moves them by two to three hundredths of it."""


def is_causal(config: Any, options: Options) -> bool:
    """Does config.json describe a model that generates text from left to right?"""
    auto_map = getattr(config, "auto_map", None) or {}
    if options.trust_remote_code and "AutoModelForCausalLM" in auto_map:
        return True
    architectures = getattr(config, "architectures", None) or []
    return any(name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in architectures)


def load_causal(
    spec: LoadSpec, options: Options, config: Any, on_progress: Callable[[float], bool]
) -> CausalBackend:
    """Raises `CannotLoad` and `LoadAborted`."""
    _check_spec(spec)
    num_threads = spec.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(num_threads)
    text_config = config.get_text_config(decoder=True)
    vocab = load_vocab(spec, options, config, size=text_config.vocab_size)
    model = load_weights(
        spec,
        options,
        config,
        transformers.AutoModelForCausalLM,
        on_progress,
        attn_implementation=pytorch_attention.NAME,
    )
    if is_slow(options.device, model.dtype):
        multiply_in_32_bits(model.get_decoder())
    context = _context(spec, text_config)
    pool = _make_pool(spec, options, model, text_config, vocab)
    limits = BatchLimits(
        batch_tokens=max(spec.batch_tokens, spec.parallel),
        embedding_batch_tokens=min(EMBEDDING_BATCH_TOKENS, spec.kv_tokens),
        splits_prompts=True,
        num_prefix_tags=MAX_PREFIX_TAGS if spec.shares_cells else 0,
        can_drop_last=True,
    )
    info = _describe(spec, options, model, text_config, context=context, threads=num_threads)
    return CausalBackend(model, vocab, pool, info=info, limits=limits, build=_build(options, model))


def _check_spec(spec: LoadSpec) -> None:
    if spec.adapters:
        raise CannotLoad(
            f"{spec.path} is a torch model, and adapters are for GGUF models only",
            hint="remove 'adapters' of the model, or merge one with peft's merge_and_unload",
            permanent=True,
        )
    if spec.gpu_layers:
        raise CannotLoad(
            f"{spec.path} is a torch model, of which no single layers can be on the GPU",
            hint="remove 'gpu_layers' of the model, and set options: {device: cuda} or cpu",
            permanent=True,
        )


def _context(spec: LoadSpec, config: Any) -> int:
    """As long as it is to be; where positions are learned, there are no more than these."""
    learned = _context_train(config)
    has_rope = getattr(config, "rope_parameters", None) is not None
    return spec.context if has_rope or not learned else min(spec.context, learned)


def _context_train(config: Any) -> int:
    return int(getattr(config, "max_position_embeddings", None) or 0)


# ---- does it work here ----


def _make_pool(
    spec: LoadSpec, options: Options, model: Any, config: Any, vocab: TorchVocab
) -> KvPool:
    """KV cells for every layer, made by a first step, which also shows whether the model can be
    computed in parts. Raises `CannotLoad`."""
    pool = KvPool(spec.kv_tokens, options.device)
    pool.attach(model)
    tokens = _probe_tokens(vocab)
    try:
        whole, parts = (_probe(model, pool, tokens, lengths) for lengths in _PROBE_PARTS)
    except (MemoryError, torch.OutOfMemoryError):
        raise no_memory(spec) from None
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise _unsuitable(spec, config, f"it failed with {type(error).__name__}") from None
    if len(pool.rows) != config.num_hidden_layers:
        reason = f"{len(pool.rows)} of its {config.num_hidden_layers} layers have a KV cache"
        raise _unsuitable(spec, config, reason)
    change = float((whole - parts).norm() / (whole - whole.mean()).norm())
    if change > _MOST_CHANGE:  # not-a-number is not: the warm-up finds it
        raise _unsuitable(spec, config, "in parts it computes something else than at once")
    return pool


def _probe_tokens(vocab: TorchVocab) -> list[int]:
    tokens = vocab.tokenize(_PROBE_TEXT, add_special=True, parse_special=False) or [0]
    return (tokens * _PROBE_TOKENS)[:_PROBE_TOKENS]


def _probe(model: Any, pool: KvPool, tokens: list[int], lengths: list[int]) -> torch.Tensor:
    """The logits after some tokens that are computed in parts of these lengths."""
    device, start = pool.device, 0
    logits = torch.empty(0)
    ids, places = (torch.tensor(each, device=device) for each in (tokens, range(len(tokens))))
    for length in lengths:
        end = start + length
        part = prompt_part(0, length, np.arange(end), device)
        pool.step = Step(places[start:end], (part,))
        with torch.inference_mode():
            logits = model(
                input_ids=ids[None, start:end],
                position_ids=places[None, start:end],
                use_cache=False,
            ).logits[0, -1]
        start = end
    return logits.float().cpu()


def _unsuitable(spec: LoadSpec, config: Any, reason: str) -> CannotLoad:
    return CannotLoad(
        f"{spec.path} is a {config.model_type} model, which the torch backend cannot serve:"
        f" {reason}",
        hint="models with attention alone (llama, qwen, mistral, gemma, phi, …) are served; look"
        " for this one as a GGUF file",
        permanent=True,
    )


# ---- what it is ----


def _describe(
    spec: LoadSpec, options: Options, model: Any, config: Any, *, context: int, threads: int
) -> ModelInfo:
    num_parameters = model.num_parameters()
    quantization = str(model.dtype).removeprefix("torch.")
    if options.quantize != "off":
        quantization = options.quantize
    is_on_card = options.device.type == "cuda"
    return ModelInfo(
        description=f"{config.model_type} {num_parameters / 1e6:.0f}M {quantization}",
        architecture=config.model_type,
        quantization=quantization,
        parameters=num_parameters,
        size_bytes=model.get_memory_footprint(),
        context_train=_context_train(config),
        context=context,
        parallel=spec.parallel,
        kv_tokens=spec.kv_tokens,
        embedding_length=config.hidden_size,
        vocab_size=config.vocab_size,
        can_generate=True,
        can_embed=True,
        threads=threads,
        gpu_layers=config.num_hidden_layers if is_on_card else 0,
        devices=(_device_name(options.device),),
        warnings=(
            *_warnings(spec, config, context=context),
            *warnings_of(options.device, model.dtype),
        ),
        attention=_attention(config),
    )


def _attention(config: Any) -> str:
    is_capped = getattr(config, "attn_logit_softcapping", None) is not None
    return "paged, step by step" if is_capped else "paged, scaled_dot_product_attention"


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    return f"{device} {torch.cuda.get_device_name(device)}"


def _warnings(spec: LoadSpec, config: Any, *, context: int) -> tuple[str, ...]:
    learned = _context_train(config)
    if context < spec.context:
        return (f"context {spec.context} is cut to {context}, the most there is for a sequence",)
    if not learned or context <= learned:
        return ()
    trained = f"the {learned} tokens the model was trained for"
    return (f"context {spec.context} is longer than {trained}; answers get worse beyond those",)


def _build(options: Options, model: Any) -> str:
    versions = f"torch {torch.__version__} transformers {transformers.__version__}"
    return f"{versions} {options.device} {model.dtype} {options.quantize}"
