"""GGUF models on llama.cpp's low-level API: many sequences in one `llama_decode`.

Owns the context, the preallocated batch, and per slot a sampler or the sum of an embedding. Knows
nothing of requests. A slot is llama.cpp's `seq_id`.

Invariants: a slot's cells and sampler exist from its opening to its closing; only the engine thread
calls `forward`; a batch is computed whole or not at all.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Final

import llama_cpp
import numpy as np

from openclawd.backends import llama_log
from openclawd.backends.base import (
    BatchLimits,
    ChatFormat,
    DecodeFailed,
    ForwardResult,
    GrammarFailed,
    LoadSpec,
    ModelInfo,
    NoFreeCells,
)
from openclawd.backends.constraint import Grammars
from openclawd.backends.llama_candidates import Candidates
from openclawd.backends.llama_load import Loaded, load_model
from openclawd.backends.llama_sampler import DrySamplers, NotNumbers, Sampler
from openclawd.backends.llama_vocab import LlamaVocab
from openclawd.engine.batch import (
    Batch,
    BatchKind,
    CacheOp,
    Chunk,
    CopyCells,
    DropCells,
    ForgetParked,
    Opening,
    Outputs,
    ParkSlot,
    ResumeSlot,
    TokenOutput,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from openclawd.engine.sampling import SamplingParams

# Results of llama_decode, llama.h.
_COMPUTED: Final = 0
_NO_SLOT: Final = 1


def load(spec: LoadSpec, on_progress: Callable[[float], bool]) -> LlamaBackend:
    """Load a GGUF file. Raises `CannotLoad` and `LoadAborted`."""
    return LlamaBackend(load_model(spec, on_progress))


class LlamaBackend:
    """The `Backend` protocol (`base.py`) on llama.cpp. Owns `loaded`."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._context = loaded.context
        self._memory = llama_cpp.llama_get_memory(loaded.context)
        self._vocab = LlamaVocab(loaded.model)
        limits = loaded.limits
        largest = max(limits.batch_tokens, limits.embedding_batch_tokens)
        self._arrays = _BatchArrays(largest, num_slots=loaded.info.parallel)
        self._grammars = Grammars(self._vocab, self._vocab.size)
        self._candidates = Candidates(self._vocab.size)
        self._samplers: dict[int, Sampler] = {}
        self._dry = DrySamplers(self._vocab)
        self._parked: dict[int, tuple[Sampler, bytes]] = {}
        self._sums: dict[int, npt.NDArray[np.float64]] = {}
        self._is_embedding = False

        self.control_texts = self._vocab.control_texts
        self.infill_tokens = self._vocab.infill_tokens
        self.max_token_bytes = self._vocab.max_token_bytes
        self.tokenize = self._vocab.tokenize
        self.detokenize = self._vocab.detokenize
        self.piece = self._vocab.piece
        self.is_end = self._vocab.is_end
        self.check_grammar = self._grammars.check

    @property
    def info(self) -> ModelInfo:
        return self._loaded.info

    @property
    def limits(self) -> BatchLimits:
        return self._loaded.limits

    @property
    def build(self) -> str:
        features: bytes = llama_cpp.llama_print_system_info()
        return f"llama_cpp {llama_cpp.__version__} {features.decode()}"

    @property
    def chat_format(self) -> ChatFormat:
        return self._vocab.chat_format

    def forward(self, batch: Batch) -> ForwardResult:
        """See `Backend.forward`."""
        lost = self._change_cells(batch.cache_ops)
        for opening in batch.opened:
            self._open_slot(opening)
        if lost:
            return NoFreeCells(lost)
        if not batch.chunks:
            return Outputs()
        self._switch_to(batch.kind)
        self._loaded.adapters.apply(self._context, batch.adapter)
        outputs = self._arrays.fill(batch)
        status = llama_cpp.llama_decode(self._context, self._arrays.batch)
        if status == _NO_SLOT:
            return NoFreeCells()
        if status != _COMPUTED:
            return DecodeFailed(_failure(status))
        if batch.kind is BatchKind.EMBEDDING:
            return self._average(batch)
        return self._sample(batch.chunks, outputs)

    def copy_cells_out(self, slot: int) -> bytes:
        """See `Backend.copy_cells_out`."""
        size = llama_cpp.llama_state_seq_get_size(self._context, slot)
        data = np.empty(size, dtype=np.uint8)
        pointer = _pointer(data, ctypes.c_uint8)
        num_written = llama_cpp.llama_state_seq_get_data(self._context, pointer, size, slot)
        return data[:num_written].tobytes()

    def copy_cells_in(self, slot: int, data: bytes) -> bool:
        """See `Backend.copy_cells_in`."""
        self._change_cells([DropCells(slot)])  # cells of nothing at all would leave it as it is
        if not data:
            return False
        pointer = _pointer(np.frombuffer(data, dtype=np.uint8), ctypes.c_uint8)
        num_read = llama_cpp.llama_state_seq_set_data(self._context, pointer, len(data), slot)
        if num_read == len(data):
            return True
        # A model with a sliding window has two caches, and one of them may have taken its part.
        self._change_cells([DropCells(slot)])
        return False

    def close(self) -> None:
        for sampler in self._samplers.values():
            sampler.close()
        for sampler, _ in self._parked.values():
            sampler.close()
        self._samplers.clear()
        self._dry.close()
        self._parked.clear()
        self._loaded.free()

    # ---- slots ----

    def _open_slot(self, opening: Opening) -> None:
        self._close_sampler(opening.slot)
        if opening.sampling is None:
            length = self.info.embedding_length
            self._sums[opening.slot] = np.zeros(length, dtype=np.float64)
        else:
            self._samplers[opening.slot] = self._sampler(opening, opening.sampling)

    def _sampler(self, opening: Opening, params: SamplingParams) -> Sampler:
        sampled = opening.tokens[opening.num_prompt_tokens :]
        return Sampler(
            opening,
            params,
            vocab=self._vocab,
            dry=self._dry,
            candidates=self._candidates,
            constraint=self._grammars.start(params.grammar, sampled) if params.grammar else None,
        )

    def _close_sampler(self, slot: int) -> None:
        self._sums.pop(slot, None)
        sampler = self._samplers.pop(slot, None)
        if sampler is not None:
            sampler.close()

    def _change_cells(self, ops: list[CacheOp]) -> tuple[int, ...]:
        """llama.cpp's unified cache only notes who has a cell; only parking copies anything. The
        slots whose cells could not be put back."""
        lost = []
        for op in ops:
            match op:
                case CopyCells(source, target, start, end):
                    llama_cpp.llama_memory_seq_cp(self._memory, source, target, start, end)
                case DropCells(owner, start, end):
                    if self._memory is not None:  # encoders keep nothing
                        is_done = llama_cpp.llama_memory_seq_rm(self._memory, owner, start, end)
                        assert is_done, "a part was dropped of a memory that has no parts"
                case ParkSlot(slot, key):
                    self._parked[key] = self._samplers.pop(slot), self.copy_cells_out(slot)
                case ResumeSlot(key, slot):
                    lost += [] if self._resume(key, slot) else [slot]
                case ForgetParked(key):
                    self._parked.pop(key)[0].close()
        return tuple(lost)

    def _resume(self, key: int, slot: int) -> bool:
        self._close_sampler(slot)
        self._samplers[slot], cells = self._parked.pop(key)
        return self.copy_cells_in(slot, cells)

    # ---- one step ----

    def _switch_to(self, kind: BatchKind) -> None:
        wants_embeddings = kind is BatchKind.EMBEDDING
        if wants_embeddings is not self._is_embedding:
            llama_cpp.llama_set_embeddings(self._context, wants_embeddings)
            self._is_embedding = wants_embeddings

    def _sample(self, chunks: list[Chunk], outputs: dict[int, int]) -> Outputs:
        result = Outputs()
        for chunk in chunks:
            if not chunk.num_outputs:
                continue
            try:
                result.tokens[chunk.slot] = self._sample_chunk(chunk, outputs[chunk.slot])
            except GrammarFailed as reason:
                result.failed[chunk.slot] = f"the output cannot follow its grammar: {reason}"
            except NotNumbers:
                result.garbage.add(chunk.slot)
        return result

    def _sample_chunk(self, chunk: Chunk, output: int) -> list[TokenOutput]:
        """The tokens that follow a chunk whose first output is `output` of the decode: of those
        that were guessed, the ones that would have been sampled, and the next. Raises
        `GrammarFailed` and `NotNumbers`."""
        sampler = self._samplers[chunk.slot]
        num_guessed = chunk.num_outputs - 1
        position = chunk.position + len(chunk.tokens) - num_guessed
        guesses = chunk.tokens[len(chunk.tokens) - num_guessed :]
        sampled: list[TokenOutput] = []
        for offset in range(chunk.num_outputs):
            token = sampler.sample(self._context, output + offset, position=position + offset)
            sampled.append(token)
            if offset < num_guessed and token.token != guesses[offset]:
                break
        return sampled

    def _average(self, batch: Batch) -> Outputs:
        """Add the hidden states of the step to each sum; finish those that are complete."""
        shape = (batch.num_tokens, self.info.embedding_length)
        states = np.ctypeslib.as_array(llama_cpp.llama_get_embeddings(self._context), shape=shape)
        result, start = Outputs(), 0
        for chunk in sorted(batch.chunks, key=_slot_of):
            end = start + len(chunk.tokens)
            total = self._sums[chunk.slot]
            total += states[start:end].sum(axis=0, dtype=np.float64)
            if chunk.num_outputs and np.isfinite(total).all():
                result.vectors[chunk.slot] = _normalised(total)
            elif chunk.num_outputs:
                result.garbage.add(chunk.slot)
            start = end
        return result


class _BatchArrays:
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
            token=_pointer(self._tokens, ctypes.c_int32),
            embd=None,
            pos=_pointer(self._positions, ctypes.c_int32),
            n_seq_id=_pointer(self._num_slots_of_token, ctypes.c_int32),
            seq_id=_pointer(self._slot_pointers, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self._wants_output, ctypes.c_int8),
        )

    def fill(self, batch: Batch) -> dict[int, int]:
        """Write a batch; for each slot that wants outputs, which of the decode is its first.

        In ascending order of the slots: with one KV stream per sequence, llama.cpp splits a batch
        that is not (measured 2026-11: 16 streams take half as long again).
        """
        outputs, start = {}, 0
        for chunk in sorted(batch.chunks, key=_slot_of):
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


def _pointer(array: Any, element: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(element))


def _slot_of(chunk: Chunk) -> int:
    return chunk.slot


def _normalised(total: npt.NDArray[np.float64]) -> bytes:
    """The direction of a sum of hidden states, which is that of their mean."""
    length = float(np.linalg.norm(total))
    return (total / (length or 1.0)).astype("<f4").tobytes()


def _failure(status: int) -> str:
    errors: Sequence[str] = llama_log.take_errors()
    reason = errors[-1] if errors else "no reason given"
    return f"llama_decode returned {status}: {reason}"
