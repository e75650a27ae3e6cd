"""Tokens as llama.cpp's samplers take them, where not all of them may come or more than the chosen
one must be known.

Owns one array, big enough for the whole vocabulary. What is not allowed is left out of it: a
sampler that looks at probabilities makes not-a-number of tokens that are impossible.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Final

import llama_cpp
import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_CANDIDATE: Final = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
"""`llama_token_data`, llama.h."""


class Candidates:
    """Belongs to the thread that samples."""

    def __init__(self, vocab_size: int) -> None:
        self._array = np.zeros(vocab_size, dtype=_CANDIDATE)
        self._data = self._array.ctypes.data_as(llama_cpp.llama_token_data_p)
        self._ids = np.arange(vocab_size, dtype=np.int32)

    def choose(
        self, chain: Any, logits: npt.NDArray[np.float32], *, allowed: npt.NDArray[np.bool_] | None
    ) -> tuple[int, float]:
        """As `llama_sampler_sample`: the token that a chain selects, and its probability there.
        None allows all; otherwise at least one must be allowed."""
        ids = self._ids if allowed is None else np.flatnonzero(allowed)
        candidates = self._array[: len(ids)]
        candidates["id"] = ids
        candidates["logit"] = logits if allowed is None else logits[allowed]
        array = llama_cpp.llama_token_data_array(
            data=self._data, size=len(ids), selected=-1, sorted=False
        )
        llama_cpp.llama_sampler_apply(chain, ctypes.byref(array))
        chosen = array.data[array.selected]
        token = int(chosen.id)
        llama_cpp.llama_sampler_accept(chain, token)
        return token, float(chosen.p)
