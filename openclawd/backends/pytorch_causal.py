"""Causal language models of transformers: many sequences in one forward.

Owns the pool of KV cells, and per slot a sampler or the sum of an embedding. Knows nothing of
requests. The model is transformers' own, but for its attention (`pytorch_attention.py`): it gets
the tokens of all sequences in one row, each with its own position, and keeps no cache.

Invariants: a slot's cells and sampler exist from its opening to its closing; only the engine thread
calls `forward`; a batch is computed whole or not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from openclawd.backends.base import (
    ChatFormat,
    DecodeFailed,
    ForwardResult,
    GrammarFailed,
    NoFreeCells,
    NotNumbers,
    PairFormat,
    go_on,
)
from openclawd.backends.cells import Cells
from openclawd.backends.constraint import Grammars
from openclawd.backends.host_cells import HostCells
from openclawd.backends.numpy_sampler import NumpySampler
from openclawd.backends.pytorch_attention import (
    Step,
    decoding_groups,
    decoding_part,
    prompt_part,
)
from openclawd.backends.pytorch_saved_cells import from_bytes, to_bytes
from openclawd.engine.batch import (
    BatchKind,
    CopyCells,
    DropCells,
    ForgetParked,
    Outputs,
    ParkSlot,
    RestoreCells,
    ResumeSlot,
    StowCells,
    TokenOutput,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from openclawd.backends.base import BatchLimits, ModelInfo, PairFormat
    from openclawd.backends.host_cells import Bytes
    from openclawd.backends.pytorch_attention import KvPool, Part
    from openclawd.backends.pytorch_vocab import TorchVocab
    from openclawd.engine.batch import Batch, CacheOp, Chunk, Opening
    from openclawd.engine.sampling import SamplingParams

_DRY_BREAKERS: Final = frozenset(b'\n:"*')
"""A run of tokens ends in one that has any of these (`dry_sequence_breakers`, common/common.h)."""


class CausalBackend:
    """The `Backend` protocol (`base.py`). `model` is in inference mode and attached to `pool`."""

    def __init__(
        self,
        model: Any,
        vocab: TorchVocab,
        pool: KvPool,
        *,
        info: ModelInfo,
        limits: BatchLimits,
        build: str,
    ) -> None:
        self._model = model
        self._decoder = model.get_decoder()
        self._vocab = vocab
        self._pool = pool
        self._cells = Cells(pool.num_cells, info.context)
        self._grammars = Grammars(vocab, vocab.size)
        self._samplers: dict[int, NumpySampler] = {}
        self._parked: dict[int, tuple[NumpySampler, Bytes]] = {}
        self._stowed = HostCells()
        self._sums: dict[int, npt.NDArray[np.float64]] = {}
        self._breakers: frozenset[int] | None = None
        self.info = info
        self.limits = limits
        self.build = build

        self.control_texts = vocab.control_texts
        self.infill_tokens = vocab.infill_tokens
        self.pair_format: PairFormat | None = None
        self.max_token_bytes = vocab.max_token_bytes
        self.tokenize = vocab.tokenize
        self.detokenize = vocab.detokenize
        self.piece = vocab.piece
        self.is_end = vocab.is_end
        self.check_grammar = self._grammars.check

    @property
    def chat_format(self) -> ChatFormat:
        return self._vocab.chat_format

    def forward(self, batch: Batch, between: Callable[[], bool] = go_on) -> ForwardResult:
        """See `Backend.forward`. Nothing is computed aside, so `between` is never called."""
        del between
        lost = self._change_cells(batch.cache_ops)
        for opening in batch.opened:
            self._open_slot(opening)
        if lost:
            return NoFreeCells(lost)
        if not batch.chunks:
            return Outputs()
        if batch.num_tokens > self._cells.num_free:
            return NoFreeCells()
        try:
            return self._compute(batch)
        except (RuntimeError, IndexError, MemoryError) as error:  # torch's, of any kind
            return DecodeFailed(f"torch failed: {type(error).__name__}: {_first_line(error)}")

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
        self._samplers.clear()
        self._parked.clear()
        self._stowed.clear()
        self._pool.rows.clear()
        del self._model, self._decoder
        if self._pool.device.type == "cuda":
            torch.cuda.empty_cache()

    # ---- slots ----

    def _open_slot(self, opening: Opening) -> None:
        self._sums.pop(opening.slot, None)
        self._samplers.pop(opening.slot, None)
        if opening.sampling is None:
            self._sums[opening.slot] = np.zeros(self.info.embedding_length, dtype=np.float64)
        else:
            self._samplers[opening.slot] = self._sampler(opening, opening.sampling)

    def _sampler(self, opening: Opening, params: SamplingParams) -> NumpySampler:
        sampled = opening.tokens[opening.num_prompt_tokens :]
        return NumpySampler(
            opening,
            params,
            end_tokens=self._vocab.end_tokens,
            suppressed_tokens=self._vocab.suppressed_tokens,
            breakers=self._dry_breakers() if params.has_dry else frozenset(),
            constraint=self._grammars.start(params.grammar, sampled) if params.grammar else None,
        )

    def _dry_breakers(self) -> frozenset[int]:
        if self._breakers is None:
            self._breakers = frozenset(
                token
                for token in range(self._vocab.size)
                if not _DRY_BREAKERS.isdisjoint(self.piece(token))
            )
        return self._breakers

    def _change_cells(self, ops: list[CacheOp]) -> tuple[int, ...]:
        """The slots and tags whose cells could not be put back."""
        lost = []
        for op in ops:
            match op:
                case CopyCells(source, target, start, end):
                    self._cells.share(source, target, start, end)
                case DropCells(owner, start, end):
                    self._cells.drop(owner, start, end)
                    if end < 0:
                        self._stowed.drop(owner)
                case ParkSlot(slot, key):
                    self._parked[key] = self._samplers.pop(slot), self._take_out(slot)
                case ResumeSlot(key, slot):
                    self._samplers[slot], cells = self._parked.pop(key)
                    lost += [] if self._put_in(slot, cells) else [slot]
                case ForgetParked(key):
                    del self._parked[key]
                case StowCells(tag):
                    self._stowed.put(tag, self._take_out(tag))
                    self._cells.drop(tag)
                case RestoreCells(tag):
                    lost += [] if self._put_in(tag, self._stowed.get(tag)) else [tag]
        return tuple(lost)

    def _take_out(self, owner: int) -> Bytes:
        """A copy of an owner's cells."""
        positions = self._cells.positions(owner)
        return to_bytes(self._pool, positions, self._cells.at(owner, positions))

    def _put_in(self, owner: int, data: Bytes) -> bool:
        self._cells.drop(owner)
        self._stowed.drop(owner)
        saved = from_bytes(self._pool, data, length=self.info.context)
        if saved is None or not self._cells.take_at(owner, saved.positions):
            return False
        saved.write(self._cells.at(owner, saved.positions))
        return True

    # ---- one step ----

    def _compute(self, batch: Batch) -> Outputs:
        chunks = sorted(batch.chunks, key=_decodes_first)
        for chunk in chunks:
            self._cells.take(chunk.slot, chunk.position, len(chunk.tokens))
        chunks = self._order_decodes(chunks)
        self._pool.step = self._step(chunks)
        if batch.kind is BatchKind.EMBEDDING:
            return self._average(chunks, self._hidden_states(chunks))
        return self._sample(chunks)

    def _order_decodes(self, chunks: list[Chunk]) -> list[Chunk]:
        """Shorter sequences first, so that those of like lengths stand together."""
        num_decodes = sum(len(chunk.tokens) == 1 for chunk in chunks)
        return sorted(chunks[:num_decodes], key=_length) + chunks[num_decodes:]

    def _step(self, chunks: list[Chunk]) -> Step:
        tables = [self._cells.of(chunk.slot, _length(chunk)) for chunk in chunks]
        own = [table[chunk.position :] for table, chunk in zip(tables, chunks, strict=True)]
        num_decodes = sum(len(chunk.tokens) == 1 for chunk in chunks)
        device = self._pool.device
        parts: list[Part] = [
            decoding_part(group.start, tables[group.start : group.stop], device)
            for group in decoding_groups([len(table) for table in tables[:num_decodes]])
        ]
        start = num_decodes
        for table, chunk in zip(tables[num_decodes:], chunks[num_decodes:], strict=True):
            parts.append(prompt_part(start, len(chunk.tokens), table, device))
            start += len(chunk.tokens)
        return Step(torch.from_numpy(np.concatenate(own)).to(device), tuple(parts))

    def _inputs(self, chunks: list[Chunk]) -> dict[str, Any]:
        tokens = [token for chunk in chunks for token in chunk.tokens]
        positions = np.concatenate([np.arange(chunk.position, _length(chunk)) for chunk in chunks])
        device = self._pool.device
        return {
            "input_ids": torch.tensor([tokens], device=device),
            "position_ids": torch.from_numpy(positions[None]).to(device),
            "use_cache": False,
        }

    def _hidden_states(self, chunks: list[Chunk]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            states = self._decoder(**self._inputs(chunks)).last_hidden_state
            array: npt.NDArray[np.float32] = states[0].float().cpu().numpy()
        return array

    def _logits(self, chunks: list[Chunk]) -> torch.Tensor:
        """A row for each output of the chunks, one after the other."""
        ends = np.cumsum([len(chunk.tokens) for chunk in chunks])
        wanted = [
            np.arange(end - chunk.num_outputs, end) for chunk, end in zip(chunks, ends, strict=True)
        ]
        index = torch.from_numpy(np.concatenate(wanted)).to(self._pool.device)
        with torch.inference_mode():
            if not index.numel():
                self._decoder(**self._inputs(chunks))
                return torch.empty(0, self._vocab.size)
            logits = self._model(**self._inputs(chunks), logits_to_keep=index).logits
            return logits[0].float()

    def _sample(self, chunks: list[Chunk]) -> Outputs:
        rows = _Rows(self._logits(chunks))
        result, start = Outputs(), 0
        for chunk in chunks:
            if not chunk.num_outputs:
                continue
            try:
                result.tokens[chunk.slot] = self._sample_chunk(chunk, rows, start)
            except GrammarFailed as reason:
                result.failed[chunk.slot] = f"the output cannot follow its grammar: {reason}"
            except NotNumbers:
                result.garbage.add(chunk.slot)
            start += chunk.num_outputs
        return result

    def _sample_chunk(self, chunk: Chunk, rows: _Rows, start: int) -> list[TokenOutput]:
        """The tokens that follow a chunk whose first row is `start`: of those that were guessed,
        the ones that would have been sampled, and the next. Raises `GrammarFailed` and
        `NotNumbers`."""
        sampler = self._samplers[chunk.slot]
        num_guessed = chunk.num_outputs - 1
        position = _length(chunk) - num_guessed
        guesses = chunk.tokens[len(chunk.tokens) - num_guessed :]
        sampled: list[TokenOutput] = []
        for offset in range(chunk.num_outputs):
            token = rows.sample(start + offset, sampler, position=position + offset)
            sampled.append(token)
            if offset < num_guessed and token.token != guesses[offset]:
                break
        return sampled

    def _average(self, chunks: list[Chunk], states: npt.NDArray[np.float32]) -> Outputs:
        """Add the hidden states of the step to each sum; finish those that are complete."""
        result, start = Outputs(), 0
        for chunk in chunks:
            end = start + len(chunk.tokens)
            total = self._sums[chunk.slot]
            total += states[start:end].sum(axis=0, dtype=np.float64)
            if chunk.num_outputs and np.isfinite(total).all():
                length = float(np.linalg.norm(total))
                result.vectors[chunk.slot] = (total / (length or 1.0)).astype("<f4").tobytes()
            elif chunk.num_outputs:
                result.garbage.add(chunk.slot)
            start = end
        return result


class _Rows:
    """The logits of a step, on its device. What is asked of several rows is computed for all at
    once, and only rows that are looked at come to the host."""

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits
        self._best: tuple[list[float], list[int]] | None = None

    def sample(self, row: int, sampler: NumpySampler, *, position: int) -> TokenOutput:
        """Raises `GrammarFailed` and `NotNumbers`."""
        if sampler.is_plain:
            token = self._likeliest(row)
            if sampler.may_come(token, position=position):
                return TokenOutput(token)
        return sampler.sample(self._logits[row].cpu().numpy(), position=position)

    def _likeliest(self, row: int) -> int:
        if self._best is None:
            values, tokens = self._logits.max(dim=-1)
            self._best = values.tolist(), tokens.tolist()
        values, tokens = self._best
        if not np.isfinite(values[row]):
            raise NotNumbers
        return tokens[row]


def _decodes_first(chunk: Chunk) -> bool:
    return len(chunk.tokens) > 1


def _length(chunk: Chunk) -> int:
    """Of its sequence, when the chunk is computed."""
    return chunk.position + len(chunk.tokens)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
