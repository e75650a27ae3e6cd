"""Which weights llama.cpp copies on this machine into a layout that its CPU computes faster from.

Owns the table of number formats. Such a copy stands beside the mapped file, whose pages nothing
reads any more, but which stay until somebody needs the room. A model of 92 MiB had 95 MiB of copies
on a Xeon with AMX (2026-11-29).

Source: ggml of llama-cpp-python 0.3.36, `ggml-cpu/amx/common.h` (`qtype_has_amx_kernels`),
`ggml-cpu/amx/mmq.cpp` (`get_row_size`) and `ggml-cpu/repack.cpp`
(`ggml_repack_get_optimal_repack_type`); numbers of formats from ggml.h. The layouts of ARM, which
depend on more than a flag, are not in it: there the first load measures what this cannot foretell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from openclawd.worker.gguf_metadata import Tensor

_Q4_0, _Q4_1, _Q8_0, _Q2_K, _Q4_K, _Q5_K, _Q6_K = 2, 3, 8, 10, 12, 13, 14
_IQ4_NL, _IQ4_XS, _MXFP4 = 20, 23, 39

_AMX: Final = {  # how much longer the copy of each is
    _Q4_0: 1.0, _Q4_1: 1.0, _Q8_0: 38 / 34, _Q4_K: 1.0, _Q5_K: 1.0, _Q6_K: 1.0, _IQ4_XS: 1.0,
}  # fmt: skip
_AVX2: Final = dict.fromkeys((_Q4_0, _Q4_K, _IQ4_NL, _MXFP4), 1.0)
_AVX512: Final = {_Q2_K: 1.0}

_INPUT: Final = "token_embd.weight"
_OUTPUT: Final = "output.weight"


def packed_bytes(tensors: Mapping[str, Tensor], flags: Collection[str]) -> int:
    """Of the copies of all matrices. What is only looked up in is not copied; where the same table
    serves input and output, it is copied for the output."""
    ratios: dict[int, float] = {}
    if "avx512f" in flags:
        ratios |= _AVX512
    if "avx2" in flags:
        ratios |= _AVX2
    if "amx_int8" in flags and "avx512_vnni" in flags:
        ratios |= _AMX
    has_output = _OUTPUT in tensors
    total = sum(
        tensor.num_bytes * ratios.get(tensor.kind, 0.0)
        for name, tensor in tensors.items()
        if tensor.num_dimensions == 2
        and name.endswith(".weight")
        and not (name == _INPUT and has_output)
    )
    return round(total)
