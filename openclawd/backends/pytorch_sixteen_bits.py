"""16-bit weights on a CPU that has no instructions for 16 bits.

Owns which CPUs these are, what is said of them, and the way around: where many tokens are computed
at once, a matrix is converted for the call and multiplied in 32 bits. On an EPYC with AVX2 (torch
2.13, two threads, 2026-11-30) the matrices of a layer of SmolLM2 take, in ms:

    tokens              1      8     32    512
    bfloat16          0.6    4.1     13    210
    converted         0.9    4.1    5.1     28
    float32           0.5    1.6    2.6     27
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

_MANY_ROWS: Final = 16
"""Fewer are quicker as they are: to convert a matrix takes as long as to multiply it by eight."""


def is_slow(device: torch.device, dtype: torch.dtype) -> bool:
    """Does this device compute slowly in this format?"""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    has_instructions: dict[torch.dtype, Callable[[], bool]] = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype in has_instructions and not has_instructions[dtype]()


def warnings_of(device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """What an administrator is told of it: nothing, where it is not slow."""
    if not is_slow(device, dtype):
        return ()
    name = str(dtype).removeprefix("torch.")
    how = "is up to three times as fast, and takes twice the memory for weights and KV cells"
    return (f"this CPU has no instructions for {name}; options: {{dtype: float32}} {how}",)


def multiply_in_32_bits(model: torch.nn.Module) -> None:
    """Have a model's matrices converted for each call with many rows, one at a time. Not for the
    output's, which is by far the largest and has few rows."""
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.forward = _multiply(module)


def _multiply(module: torch.nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(rows: torch.Tensor) -> torch.Tensor:
        weight, bias = module.weight, module.bias
        if rows.numel() < _MANY_ROWS * rows.shape[-1]:
            return functional.linear(rows, weight, bias)
        bias = None if bias is None else bias.float()
        return functional.linear(rows.float(), weight.float(), bias).to(rows.dtype)

    return forward
