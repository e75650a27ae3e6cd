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

from openclawd.backends import llama_load, llama_log
from openclawd.backends.base import (
    BatchLimits,
    ChatFormat,
    DecodeFailed,
    ForwardResult,
    GrammarFailed,
    LoadSpec,
    ModelInfo,
    NoFreeCells,
    NotNumbers,
    PairFormat,
    Stopped,
    go_on,
)
from openclawd.backends.constraint import Grammars
from openclawd.backends.host_cells import HostCells, own_pages
from openclawd.backends.llama_arrays import BatchArrays, pointer_to, slot_of
from openclawd.backends.llama_aside import Ending
from openclawd.backends.llama_candidates import Candidates
from openclawd.backends.llama_load import Loaded, load_model
from openclawd.backends.llama_sampler import DrySamplers, Sampler
from openclawd.backends.llama_vocab import LlamaVocab
from openclawd.backends.llama_waits import Waits
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
    RestoreCells,
    ResumeSlot,
    StowCells,
    TokenOutput,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from openclawd.backends.host_cells import Bytes
    from openclawd.engine.sampling import SamplingParams

_LENT: Final = 0
"""The slot by way of which the cells of a tag are copied."""

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
        self._arrays = BatchArrays(largest, num_slots=loaded.info.parallel)
        self._grammars = Grammars(self._vocab, self._vocab.size)
        self._candidates = Candidates(self._vocab.size)
        self._samplers: dict[int, Sampler] = {}
        self._dry = DrySamplers(self._vocab)
        self._parked: dict[int, tuple[Sampler, Bytes]] = {}
        self._stowed = HostCells()
        self._sums: dict[int, npt.NDArray[np.float64]] = {}
        self._is_embedding = False
        self._waits = Waits(loaded.info.threads)

        self.pair_format: PairFormat | None = None
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

    def forward(self, batch: Batch, between: Callable[[], bool] = go_on) -> ForwardResult:
        """See `Backend.forward`."""
        lost = self._change_cells(batch.cache_ops)
        for opening in batch.opened:
            self._open_slot(opening)
        if lost:
            return NoFreeCells(lost)
        if not batch.chunks:
            return Outputs()
        self._waits.adapt()
        if batch.is_aside:
            return self._forward_aside(batch, between)
        self._switch_to(batch.kind)
        self._loaded.adapters.apply(self._context, batch.adapter)
        outputs = self._arrays.fill(batch)
        status = llama_cpp.llama_decode(self._context, self._arrays.batch)
        if status == _NO_SLOT:
            return NoFreeCells()
        if status != _COMPUTED:
            return DecodeFailed(_failure(f"status {status}"))
        if batch.kind is BatchKind.EMBEDDING:
            return self._pool(batch)
        return self._sample(batch.chunks, outputs, self._context)

    def copy_cells_out(self, owner: int) -> bytes:
        """See `Backend.copy_cells_out`."""
        is_stowed = owner in self._stowed
        return (self._stowed.get(owner) if is_stowed else self._take_out(owner)).tobytes()

    def copy_cells_in(self, owner: int, data: bytes) -> bool:
        """See `Backend.copy_cells_in`."""
        return self._put_in(owner, np.frombuffer(data, dtype=np.uint8))

    def stow(self, tag: int, data: bytes) -> None:
        """See `Backend.stow`."""
        self._stowed.put(tag, np.frombuffer(data, dtype=np.uint8))

    def close(self) -> None:
        for sampler in self._samplers.values():
            sampler.close()
        for sampler, _ in self._parked.values():
            sampler.close()
        self._samplers.clear()
        self._dry.close()
        self._parked.clear()
        self._stowed.clear()
        self._waits.close()
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
        """llama.cpp's unified cache only notes who has a cell; only what goes to the host's memory
        and comes back is copied. The slots and tags whose cells could not be put back."""
        lost = []
        for op in ops:
            match op:
                case CopyCells(source, target, start, end):
                    llama_cpp.llama_memory_seq_cp(self._memory, source, target, start, end)
                case DropCells(owner, start, end):
                    self._drop_cells(owner, start, end)
                case ParkSlot(slot, key):
                    self._parked[key] = self._samplers.pop(slot), self._take_out(slot)
                case ResumeSlot(key, slot):
                    lost += [] if self._resume(key, slot) else [slot]
                case ForgetParked(key):
                    self._parked.pop(key)[0].close()
                case StowCells(tag):
                    cells = self._take_out(tag)
                    self._drop_cells(tag)
                    self._stowed.put(tag, cells)
                case RestoreCells(tag):
                    lost += [] if self._put_in(tag, self._stowed.get(tag)) else [tag]
        return tuple(lost)

    def _drop_cells(self, owner: int, start: int = -1, end: int = -1) -> None:
        if end < 0:
            self._stowed.drop(owner)
            if self._loaded.aside is not None:
                self._loaded.aside.forget(owner)
        if self._memory is not None:  # encoders keep nothing
            is_done = llama_cpp.llama_memory_seq_rm(self._memory, owner, start, end)
            assert is_done, "a part was dropped of a memory that has no parts"

    def _resume(self, key: int, slot: int) -> bool:
        self._close_sampler(slot)
        self._samplers[slot], cells = self._parked.pop(key)
        return self._put_in(slot, cells)

    def _take_out(self, owner: int) -> Bytes:
        """A copy of an owner's cells. llama.cpp copies those of a tag only by way of a slot, whose
        own stand aside meanwhile (`state_write_meta` looks for sequences below `n_seq_max`)."""
        if owner < self.info.parallel:
            return self._copy(owner)
        scratch = self.info.parallel + self.limits.num_prefix_tags
        self._hand_over(_LENT, scratch)
        llama_cpp.llama_memory_seq_cp(self._memory, owner, _LENT, -1, -1)
        cells = self._copy(_LENT)
        llama_cpp.llama_memory_seq_rm(self._memory, _LENT, -1, -1)
        self._hand_over(scratch, _LENT)
        return cells

    def _hand_over(self, source: int, target: int) -> None:
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        llama_cpp.llama_memory_seq_rm(self._memory, source, -1, -1)

    def _copy(self, owner: int) -> Bytes:
        size = llama_cpp.llama_state_seq_get_size(self._context, owner)
        data = own_pages(size)
        pointer = pointer_to(data, ctypes.c_uint8)
        num_written = llama_cpp.llama_state_seq_get_data(self._context, pointer, size, owner)
        return data[:num_written]

    def _put_in(self, owner: int, data: Bytes) -> bool:
        self._drop_cells(owner)  # cells of nothing at all would leave it as it is
        if not data.size:
            return False
        pointer = pointer_to(data, ctypes.c_uint8)
        num_read = llama_cpp.llama_state_seq_set_data(self._context, pointer, data.size, owner)
        if num_read == data.size:
            return True
        # A model with a sliding window has two caches, and one of them may have taken its part.
        self._drop_cells(owner)
        return False

    # ---- one step ----

    def _switch_to(self, kind: BatchKind) -> None:
        wants_embeddings = kind is BatchKind.EMBEDDING
        if wants_embeddings is not self._is_embedding:
            llama_cpp.llama_set_embeddings(self._context, wants_embeddings)
            self._is_embedding = wants_embeddings

    def _forward_aside(self, batch: Batch, between: Callable[[], bool]) -> ForwardResult:
        aside = self._loaded.aside
        assert aside is not None, "nothing can be computed aside with this model"
        ending, output = aside.compute(batch, between)
        match ending:
            case Ending.COMPUTED:
                outputs = {chunk.slot: output for chunk in batch.chunks}
                return self._sample(batch.chunks, outputs, aside.context)
            case Ending.STOPPED:
                return Stopped()
            case Ending.NO_CELLS:
                return NoFreeCells()
            case Ending.FAILED:
                return DecodeFailed(_failure("aside"))

    def _sample(self, chunks: list[Chunk], outputs: dict[int, int], context: Any) -> Outputs:
        """`outputs`: for each slot that wants any, which one of the context is its first."""
        result = Outputs()
        for chunk in chunks:
            if not chunk.num_outputs:
                continue
            try:
                result.tokens[chunk.slot] = self._sample_chunk(chunk, outputs[chunk.slot], context)
            except GrammarFailed as reason:
                result.failed[chunk.slot] = f"the output cannot follow its grammar: {reason}"
            except NotNumbers:
                result.garbage.add(chunk.slot)
        return result

    def _sample_chunk(self, chunk: Chunk, output: int, context: Any) -> list[TokenOutput]:
        """The tokens that follow a chunk whose first output is `output` of the decode: of those
        that were guessed, the ones that would have been sampled, and the next. Raises
        `GrammarFailed` and `NotNumbers`."""
        sampler = self._samplers[chunk.slot]
        num_guessed = chunk.num_outputs - 1
        position = chunk.position + len(chunk.tokens) - num_guessed
        guesses = chunk.tokens[len(chunk.tokens) - num_guessed :]
        sampled: list[TokenOutput] = []
        for offset in range(chunk.num_outputs):
            token = sampler.sample(context, output + offset, position=position + offset)
            sampled.append(token)
            if offset < num_guessed and token.token != guesses[offset]:
                break
        return sampled

    def _pool(self, batch: Batch) -> Outputs:
        """Add the hidden states of the step that count to each sum; finish those that are
        complete."""
        shape = (batch.num_tokens, self.info.embedding_length)
        states = np.ctypeslib.as_array(llama_cpp.llama_get_embeddings(self._context), shape=shape)
        result, start = Outputs(), 0
        for chunk in sorted(batch.chunks, key=slot_of):
            end = start + len(chunk.tokens)
            total = self._sums[chunk.slot]
            total += self._counting(chunk, states[start:end]).sum(axis=0, dtype=np.float64)
            if chunk.num_outputs and np.isfinite(total).all():
                result.vectors[chunk.slot] = _normalised(total)
            elif chunk.num_outputs:
                result.garbage.add(chunk.slot)
            start = end
        return result

    def _counting(self, chunk: Chunk, states: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Of a chunk's hidden states, those that its text's vector is made of."""
        match self.info.pooling:
            case llama_load.FIRST:
                return states[:1] if chunk.position == 0 else states[:0]
            case llama_load.LAST:
                return states[-1:] if chunk.num_outputs else states[:0]
            case _:
                return states


def _normalised(total: npt.NDArray[np.float64]) -> bytes:
    """The direction of a sum of hidden states, which is that of their mean."""
    length = float(np.linalg.norm(total))
    return (total / (length or 1.0)).astype("<f4").tobytes()


def _failure(what: str) -> str:
    errors: Sequence[str] = llama_log.take_errors()
    reason = errors[-1] if errors else "no reason given"
    return f"llama_decode failed ({what}): {reason}"
