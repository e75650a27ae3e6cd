"""The options of a torch model: names, allowed values, and where and how it is computed.

Owns their table, and the sentences for a device or a number format that is not there. An option
that is not in the table is refused: a setting that is accepted and ignored is worse than none.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from openclawd.backends.base import CannotLoad

if TYPE_CHECKING:
    from collections.abc import Mapping

_DTYPES: Final = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
_ALLOWED: Final = {
    "dtype": ("auto", *_DTYPES),
    "quantize": ("off", "8bit", "4bit"),
    "trust_remote_code": (True, False),
}
_DEVICE: Final = "device"


@dataclass(frozen=True, slots=True)
class Options:
    """`dtype` None is that of the model's files, `quantize` is off, 8bit or 4bit."""

    device: torch.device
    dtype: torch.dtype | None
    quantize: str
    trust_remote_code: bool


def read_options(options: Mapping[str, Any]) -> Options:
    """Raises `CannotLoad` for an unknown name or value, and for what this machine does not have."""
    for name, value in options.items():
        allowed = _ALLOWED.get(name)
        if name != _DEVICE and allowed is None:
            raise _refused(f"unknown option {name!r}", sorted([*_ALLOWED, _DEVICE]))
        if allowed and (not isinstance(value, bool | str) or value not in allowed):
            raise _refused(f"option {name!r} is {value!r}", [str(each).lower() for each in allowed])
    device = _device(options.get(_DEVICE, "auto"))
    quantize = options.get("quantize", "off")
    if quantize != "off":
        _check_quantize(device)
    return Options(
        device=device,
        dtype=_DTYPES.get(options.get("dtype", "auto")),
        quantize=quantize,
        trust_remote_code=options.get("trust_remote_code", False),
    )


def _device(name: Any) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = str(name).partition(":")
    if kind not in ("cpu", "cuda") or (index and (kind == "cpu" or not index.isdecimal())):
        raise _refused(f"option 'device' is {name!r}", ["auto", "cpu", "cuda", "cuda:N"])
    if kind == "cuda":
        _check_card(name, int(index or 0))
    return torch.device(name)


def _check_card(name: str, index: int) -> None:
    num_cards = torch.cuda.device_count()
    if index < num_cards:
        return
    if torch.version.cuda is None:
        raise CannotLoad(
            f"device {name} is not there: this torch {torch.__version__} computes on the CPU only",
            hint="install a CUDA build of torch (README, Install), or write device: cpu",
            permanent=True,
        )
    raise CannotLoad(
        f"device {name} is not there: torch sees {num_cards} CUDA devices",
        hint="look at nvidia-smi and at 'devices' of the model, or write device: cpu",
        permanent=False,
    )


def _check_quantize(device: torch.device) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise CannotLoad(
            "8- and 4-bit weights need the package bitsandbytes, which is not installed",
            hint="pip install bitsandbytes accelerate, or write quantize: off",
            permanent=True,
        )
    if device.type != "cuda":
        raise CannotLoad(
            "8- and 4-bit weights are for cards only",
            hint="write device: cuda or quantize: off; on a CPU, use a quantised GGUF model",
            permanent=True,
        )


def _refused(what: str, allowed: list[str]) -> CannotLoad:
    return CannotLoad(
        f"{what} of the torch backend",
        hint=f"allowed under 'options' of the model: {', '.join(allowed)}",
        permanent=True,
    )
