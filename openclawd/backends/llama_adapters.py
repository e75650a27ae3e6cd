"""LoRA adapters: loaded beside a model, applied to a context one at a time.

Owns their handles; llama.cpp frees them with the model. Which batch is computed with which adapter
is the engine's.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any

import llama_cpp

from openclawd.backends import llama_log
from openclawd.backends.base import CannotLoad
from openclawd.backends.gguf_file import check_gguf_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openclawd.backends.base import AdapterSpec


class Adapters:
    """Those of one model, by name; "" is none. To be loaded before a context is made, which must
    know how much larger its graph may get (llama-context.cpp, `graph_max_nodes`)."""

    def __init__(self, model: Any, specs: Mapping[str, AdapterSpec]) -> None:
        """Raises `CannotLoad`, which names the adapter."""
        self._applied: dict[Any, str] = {}  # by context
        self._adapters = {
            name: (_load(model, name, spec.path), spec.scale) for name, spec in specs.items()
        }

    def apply(self, context: Any, name: str) -> None:
        """Compute with this one from now on. That makes llama.cpp build its graph anew, so it costs
        some time: 3.5 ms with SmolLM2 (2026-11-23, one thread; a token takes 12 ms)."""
        if name == self._applied.get(context, ""):
            return
        if name:
            handle, scale = self._adapters[name]
            handles = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(handle)
            scales = (ctypes.c_float * 1)(scale)
            llama_cpp.llama_set_adapters_lora(context, handles, 1, scales)
        else:
            llama_cpp.llama_set_adapters_lora(context, None, 0, None)
        self._applied[context] = name


def _load(model: Any, name: str, path: str) -> Any:
    try:
        check_gguf_file(path)
    except CannotLoad as failure:
        raise CannotLoad(
            f"adapter {name!r}: {failure.message}", hint=failure.hint, permanent=failure.permanent
        ) from None
    llama_log.take_errors()
    handle = llama_cpp.llama_adapter_lora_init(model, os.fsencode(path))
    if not handle:
        raise _refused(f"adapter {name!r} ({path}): {llama_log.reason(llama_log.take_errors())}")
    if llama_cpp.llama_adapter_get_alora_n_invocation_tokens(handle):
        raise _refused(f"adapter {name!r} ({path}) is an activated LoRA, which is not built yet")
    return handle


def _refused(message: str) -> CannotLoad:
    return CannotLoad(
        message,
        hint="use a LoRA that was made for this very model, as convert_lora_to_gguf.py writes it",
        permanent=True,
    )
