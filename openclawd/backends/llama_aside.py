"""Prompts computed aside: in a second context of the same model, with pauses between its layers.

Owns that context and the way of cells between it and the main one. A long prompt is quick to
compute in large parts only, and streams cannot wait for a large part; in the pauses the main
context computes their steps. When a part is done its cells are in the main context, as if they had
been computed there: what is here is a copy, which the next part builds on.

Only for a unified KV cache, whose sequences can have cells in common.
"""

from __future__ import annotations

import ctypes
import enum
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import llama_cpp
import numpy as np

from openclawd.backends.llama_arrays import BatchArrays, pointer_to

if TYPE_CHECKING:
    from collections.abc import Callable

    from openclawd.backends.llama_adapters import Adapters
    from openclawd.engine.batch import Batch

_NODES_PER_PAUSE: Final = 4
"""Operations of the graph between two pauses. SmolLM2's has 936, the longest of which is the
attention of a layer: of 256 tokens to 2,000, 27 ms on two cores."""

_PROMPT: Final = 0
_PART: Final = 1
"""The sequences here: all that is computed of a prompt, and for a moment the cells of its newest
part."""

_NOBODY: Final = -1
_COMPUTED: Final = 0
"""A result of llama_decode, llama.h."""


class Ending(enum.Enum):
    COMPUTED = enum.auto()
    STOPPED = enum.auto()
    NO_CELLS = enum.auto()
    FAILED = enum.auto()


class Aside:
    """Belongs to the engine thread. `scratch` is a sequence of the main context that has
    nothing but while cells pass through it."""

    def __init__(
        self,
        model: Any,
        params: Any,
        main: Any,
        adapters: Adapters,
        *,
        context_tokens: int,
        max_tokens: int,
        scratch: int,
    ) -> None:
        """`params` are those that `main` was made with; here is room for `context_tokens` of one
        prompt, and `max_tokens` at once. Raises `MemoryError`."""
        self._main = main
        self._adapters = adapters
        self._scratch = scratch
        self._num_nodes = 0
        self._slot = _NOBODY
        self._end = 0  # of its cells that are here
        self._between: Callable[[], bool] = bool
        self._is_stopped = False
        self._raised: BaseException | None = None
        # Held as long as the context: llama.cpp has only a pointer to it.
        self._callback = llama_cpp.ggml_backend_sched_eval_callback(self._on_node)
        self.context = self._make_context(model, params, context_tokens, max_tokens)
        self._memory = llama_cpp.llama_get_memory(self.context)
        self._arrays = BatchArrays(max_tokens, num_slots=1)

    def compute(self, batch: Batch, between: Callable[[], bool]) -> tuple[Ending, int]:
        """Compute the chunk of a batch, with pauses. `between` says whether to go on. Also gives
        the output of the chunk's last token, if it has one.

        What `between` raises is raised again, once llama.cpp has returned.
        """
        (chunk,) = batch.chunks
        if not self._take_in(chunk.slot, chunk.position):
            return Ending.NO_CELLS, 0
        self._slot = _NOBODY  # until it is certain what is here
        self._adapters.apply(self.context, batch.adapter)
        outputs = self._arrays.fill(replace(batch, chunks=[replace(chunk, slot=_PROMPT)]))
        status = self._decode(between)
        if self._is_stopped or status != _COMPUTED or not between():
            return (Ending.FAILED if status != _COMPUTED else Ending.STOPPED), 0
        end = chunk.position + len(chunk.tokens)
        if not self._give(chunk.slot, chunk.position, end):
            return Ending.NO_CELLS, 0
        self._slot, self._end = chunk.slot, end
        return Ending.COMPUTED, outputs.get(_PROMPT, 0)

    def forget(self, slot: int) -> None:
        """The main context's cells of a slot are others from now on."""
        if slot == self._slot:
            self._slot = _NOBODY

    def close(self) -> None:
        llama_cpp.llama_free(self.context)

    def _make_context(self, model: Any, params: Any, context_tokens: int, max_tokens: int) -> Any:
        params = type(params).from_buffer_copy(params)
        params.n_ctx = context_tokens
        params.n_batch = params.n_ubatch = max_tokens
        params.n_seq_max = params.n_outputs_max = 2
        params.cb_eval = self._callback
        context = llama_cpp.llama_init_from_model(model, params)
        if not context:
            raise MemoryError
        return context

    # ---- computing ----

    def _decode(self, between: Callable[[], bool]) -> int:
        self._between, self._is_stopped, self._num_nodes = between, False, 0
        status: int = llama_cpp.llama_decode(self.context, self._arrays.batch)
        self._between = bool  # let go of what it refers to
        if self._raised is not None:
            raised, self._raised = self._raised, None
            raise raised
        return status

    def _on_node(self, node: object, is_question: object, user_data: object) -> bool:
        """llama.cpp asks of each operation whether to stop after it, and calls again where it was
        told to."""
        del node, user_data
        if self._is_stopped:
            return False
        if is_question:
            self._num_nodes += 1
            return self._num_nodes % _NODES_PER_PAUSE == 0
        try:
            self._is_stopped = not self._between()
        except BaseException as error:  # would be lost in native code
            self._raised, self._is_stopped = error, True
        return not self._is_stopped

    # ---- cells ----

    def _take_in(self, slot: int, end: int) -> bool:
        """Have the cells of a slot before position `end` here."""
        if (slot, end) == (self._slot, self._end):
            return True
        self._slot = _NOBODY
        self._drop(_PROMPT)
        return end == 0 or _move(self._main, slot, self.context, _PROMPT)

    def _give(self, slot: int, start: int, end: int) -> bool:
        """Give the slot of the main context the cells of positions `[start, end)`."""
        llama_cpp.llama_memory_seq_cp(self._memory, _PROMPT, _PART, start, end)
        is_done = _move(self.context, _PART, self._main, self._scratch)
        self._drop(_PART)
        memory = llama_cpp.llama_get_memory(self._main)
        if is_done:
            llama_cpp.llama_memory_seq_cp(memory, self._scratch, slot, start, end)
        llama_cpp.llama_memory_seq_rm(memory, self._scratch, -1, -1)
        return is_done

    def _drop(self, sequence: int) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)


def _move(source: Any, from_sequence: int, target: Any, to_sequence: int) -> bool:
    """Copy the cells of a sequence to another context. False if they do not fit."""
    size = llama_cpp.llama_state_seq_get_size(source, from_sequence)
    data = np.empty(size, dtype=np.uint8)
    pointer = pointer_to(data, ctypes.c_uint8)
    num_written = llama_cpp.llama_state_seq_get_data(source, pointer, size, from_sequence)
    num_read = llama_cpp.llama_state_seq_set_data(target, pointer, num_written, to_sequence)
    return bool(num_written == num_read == size)
