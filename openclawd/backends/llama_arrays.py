"""A `llama_batch` over arrays that are allocated once.

Owns the order of a batch's tokens, and so which of its outputs is whose.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np

from openclawd.engine.batch import BatchKind

if TYPE_CHECKING:
    from openclawd.engine.batch import Batch, Chunk


class BatchArrays:
    """A `llama_batch` over arrays that are allocated once and written with slices: filling one
    token at a time through ctypes costs more than the rest of a prefill's bookkeeping."""

    def __init__(self, max_tokens: int, *, num_slots: int) -> None:
        self._tokens = np.zeros(max_tokens, dtype=np.int32)
        self._positions = np.zeros(max_tokens, dtype=np.int32)
        self._num_slots_of_token = np.ones(max_tokens, dtype=np.int32)
        self._slot_pointers = np.zeros(max_tokens, dtype=np.uintp)
        self._wants_output = np.zeros(max_tokens, dtype=np.int8)
        self._slots = np.arange(num_slots, dtype=np.int32)
        self._slot_addresses = [self._slots.ctypes.data + 4 * slot for slot in range(num_slots)]
        self._count = np.arange(max_tokens, dtype=np.int32)
        self.batch = llama_cpp.llama_batch(
            n_tokens=0,
            token=pointer_to(self._tokens, ctypes.c_int32),
            embd=None,
            pos=pointer_to(self._positions, ctypes.c_int32),
            n_seq_id=pointer_to(self._num_slots_of_token, ctypes.c_int32),
            seq_id=pointer_to(self._slot_pointers, ctypes.POINTER(ctypes.c_int32)),
            logits=pointer_to(self._wants_output, ctypes.c_int8),
        )

    def fill(self, batch: Batch) -> dict[int, int]:
        """Write a batch; for each slot that wants outputs, which of the decode is its first.

        In ascending order of the slots: with one KV stream per sequence, llama.cpp splits a batch
        that is not (measured 2026-11: 16 streams take half as long again).
        """
        outputs, start = {}, 0
        for chunk in sorted(batch.chunks, key=slot_of):
            end = start + len(chunk.tokens)
            self._write(chunk, start, end)
            if chunk.num_outputs:
                outputs[chunk.slot] = end - chunk.num_outputs
            start = end
        if batch.kind is BatchKind.EMBEDDING:
            self._wants_output[:start] = 1  # every hidden state counts
        self.batch.n_tokens = start
        return outputs

    def _write(self, chunk: Chunk, start: int, end: int) -> None:
        if end - start == 1:  # a decode: plain items are faster than slices of one
            self._tokens[start] = chunk.tokens[0]
            self._positions[start] = chunk.position
            self._slot_pointers[start] = self._slot_addresses[chunk.slot]
            self._wants_output[start] = chunk.num_outputs
        else:
            self._tokens[start:end] = chunk.tokens
            self._positions[start:end] = self._count[: end - start] + chunk.position
            self._slot_pointers[start:end] = self._slot_addresses[chunk.slot]
            self._wants_output[start:end] = 0
            self._wants_output[end - chunk.num_outputs : end] = 1


def pointer_to(array: Any, element: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(element))


def slot_of(chunk: Chunk) -> int:
    return chunk.slot
