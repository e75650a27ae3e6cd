"""The backend options of a llama.cpp model: names, allowed values, what each sets.

Owns their table. An option that is not in it is refused: a setting that is accepted and ignored is
worse than none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import llama_cpp

from openclawd.backends.base import CannotLoad
from openclawd.backends.llama_offload import set_tensor_split

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_GGML_TYPE_BF16: Final = 30
"""ggml.h, enum ggml_type; llama_cpp has no name for it."""

_FLASH_ATTN: Final = {
    "auto": llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO,
    True: llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    False: llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
_CACHE_TYPES: Final = {
    "f32": llama_cpp.GGML_TYPE_F32,
    "f16": llama_cpp.GGML_TYPE_F16,
    "bf16": _GGML_TYPE_BF16,
    "q8_0": llama_cpp.GGML_TYPE_Q8_0,
    "q5_1": llama_cpp.GGML_TYPE_Q5_1,
    "q5_0": llama_cpp.GGML_TYPE_Q5_0,
    "q4_1": llama_cpp.GGML_TYPE_Q4_1,
    "q4_0": llama_cpp.GGML_TYPE_Q4_0,
}
_SPLIT_MODES: Final = {
    "layer": llama_cpp.LLAMA_SPLIT_MODE_LAYER,
    "row": llama_cpp.LLAMA_SPLIT_MODE_ROW,
    "none": llama_cpp.LLAMA_SPLIT_MODE_NONE,
}
_SWITCH: Final = {True: True, False: False}


def _flash_attn(model: Any, context: Any, value: Any) -> None:
    del model
    context.flash_attn_type = value


def _cache_type_k(model: Any, context: Any, value: Any) -> None:
    del model
    context.type_k = value


def _cache_type_v(model: Any, context: Any, value: Any) -> None:
    del model
    context.type_v = value


def _split_mode(model: Any, context: Any, value: Any) -> None:
    del context
    model.split_mode = value


_OPTIONS: Final[dict[str, tuple[dict[Any, Any], Callable[[Any, Any, Any], None]]]] = {
    "flash_attn": (_FLASH_ATTN, _flash_attn),
    "cache_type_k": (_CACHE_TYPES, _cache_type_k),
    "cache_type_v": (_CACHE_TYPES, _cache_type_v),
    "split_mode": (_SPLIT_MODES, _split_mode),
}
_LOAD_OPTIONS: Final = ("mmap", "mlock", "tensor_split")

_LOAD_MODES: Final = {  # (mmap, mlock)
    (False, False): llama_cpp.LLAMA_LOAD_MODE_NONE,
    (True, False): llama_cpp.LLAMA_LOAD_MODE_MMAP,
    (False, True): llama_cpp.LLAMA_LOAD_MODE_MLOCK,
    (True, True): llama_cpp.LLAMA_LOAD_MODE_MMAP_MLOCK,
}


def apply_options(options: Mapping[str, Any], model: Any, context: Any) -> None:
    """Set llama.cpp's parameter structs. Raises `CannotLoad` for an unknown name or value."""
    _apply_load_mode(options, model)
    if "tensor_split" in options:
        set_tensor_split(model, _checked_shares(options["tensor_split"]))
    for name, value in options.items():
        if name in _LOAD_OPTIONS:
            continue
        if name not in _OPTIONS:
            raise _refused(f"unknown option {name!r}", sorted([*_OPTIONS, *_LOAD_OPTIONS]))
        values, apply = _OPTIONS[name]
        apply(model, context, values[_checked(name, value, values)])


def _apply_load_mode(options: Mapping[str, Any], model: Any) -> None:
    mmap = _checked("mmap", options.get("mmap", True), _SWITCH)
    mlock = _checked("mlock", options.get("mlock", False), _SWITCH)
    if "mmap" in options or "mlock" in options:
        model.load_mode = _LOAD_MODES[mmap, mlock]


def _checked_shares(value: Any) -> list[float]:
    most = llama_cpp.llama_max_devices()
    if not isinstance(value, list) or len(value) > most:
        raise _refused("option 'tensor_split'", [f"a list of at most {most} numbers"])
    return value


def _checked(name: str, value: Any, values: Mapping[Any, Any]) -> Any:
    is_known = isinstance(value, bool | str) and value in values
    if not is_known:
        raise _refused(f"option {name!r} is {value!r}", [_yaml(allowed) for allowed in values])
    return value


def _yaml(value: Any) -> str:
    return str(value).lower()


def _refused(what: str, allowed: list[str]) -> CannotLoad:
    return CannotLoad(
        f"{what} of the llama backend",
        hint=f"allowed under 'options' of the model: {', '.join(allowed)}",
        permanent=True,
    )
