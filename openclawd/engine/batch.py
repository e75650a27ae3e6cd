"""What the scheduler asks of a backend for one step, and what it gets back.

Owns the seam: only slots, positions, token ids and finished vectors cross it. A batch is
homogeneous: all its chunks want tokens sampled, or all want hidden states averaged, and all are
computed with the same adapter.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from openclawd.engine.sampling import SamplingParams


class BatchKind(enum.Enum):
    GENERATION = "generation"
    EMBEDDING = "embedding"

    __hash__ = object.__hash__  # members are singletons; that of `Enum` is a function in Python


@dataclass(frozen=True, slots=True)
class CopyCells:
    """The KV cells of `source` at positions `[start, end)` are from now on `target`'s, too. Shared,
    not copied: a cell is free when nobody has it any more."""

    source: int
    target: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class DropCells:
    """`owner` gives up its KV cells at positions `[start, end)`; -1 is all there are."""

    owner: int
    start: int = -1
    end: int = -1


@dataclass(frozen=True, slots=True)
class ParkSlot:
    """Take what a slot has, its cells and its sampler's state, to the host's memory under `key`.
    The slot is given up next."""

    slot: int
    key: int


@dataclass(frozen=True, slots=True)
class ResumeSlot:
    """Put what was parked under `key` into a slot, which is then as if it had just been opened."""

    key: int
    slot: int


@dataclass(frozen=True, slots=True)
class ForgetParked:
    """What was parked under `key` is not needed any more."""

    key: int


@dataclass(frozen=True, slots=True)
class StowCells:
    """Take the cells of a kept prefix from the cache to the host's memory. To drop them all is to
    forget what was stowed, too."""

    tag: int


@dataclass(frozen=True, slots=True)
class RestoreCells:
    """Put what was stowed of a kept prefix back into the cache."""

    tag: int


_COPIES: Final = (ParkSlot, ResumeSlot, StowCells, RestoreCells)

CacheOp = CopyCells | DropCells | ParkSlot | ResumeSlot | ForgetParked | StowCells | RestoreCells


@dataclass(frozen=True, slots=True)
class Opening:
    """A slot is taken by a sequence. `tokens` are all it has so far, for whatever looks back; those
    after the first `num_prompt_tokens` were sampled. `sampling` is None for embeddings; `mu` is
    that of the token sampled last, if it had one. Its cells are the concern of the batch's
    `cache_ops`."""

    slot: int
    tokens: tuple[int, ...]
    num_prompt_tokens: int
    sampling: SamplingParams | None
    mu: float | None = None


@dataclass(slots=True)  # not frozen: one is made for every token, which takes half as long
class Chunk:
    """Consecutive tokens of one sequence, at positions `[position, position + len(tokens))`.

    `num_outputs` of its last positions are sampled: none in the middle of a prefill; one when after
    these tokens everything known of the sequence is computed, so that its next token is sampled, or
    its vector is complete; k + 1 when the last k tokens are only guessed.
    """

    slot: int
    position: int
    tokens: list[int]
    num_outputs: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: `cache_ops` are done in their order, then `opened` slots are set up, then the
    chunks are computed, with a LoRA if `adapter` names one. One that `is_aside` has a single chunk,
    and batches of other slots may be computed while it is."""

    kind: BatchKind
    chunks: list[Chunk]
    opened: list[Opening] = field(default_factory=list)
    cache_ops: list[CacheOp] = field(default_factory=list)
    adapter: str = ""
    is_aside: bool = False

    @property
    def num_tokens(self) -> int:
        return sum(len(chunk.tokens) for chunk in self.chunks)

    @property
    def copies_cells(self) -> bool:
        """To the host's memory or from there, which takes its time."""
        return any(isinstance(op, _COPIES) for op in self.cache_ops)


@dataclass(slots=True)  # not frozen: one is made for every token, which takes half as long
class TokenOutput:
    """A sampled token. `logprob` is its natural logarithm of probability before any filter, `top`
    the likeliest tokens with theirs; both only where the sampling parameters ask for them. `mu` is
    what mirostat has come to with this token, the only thing in sampling that the tokens alone do
    not decide."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    mu: float | None = None


@dataclass(frozen=True, slots=True)
class Outputs:
    """For each slot whose chunk wanted outputs: the sampled tokens, or the normalised vector as
    little-endian float32 bytes.

    Of guessed tokens those come back that would have been sampled in their place, then the one
    that was sampled instead of, or after, the last of them: 1 to `num_outputs` tokens in all.

    `failed` are the slots whose sequence cannot go on, and why, as a sentence; they have no tokens.
    Nor have those in `garbage`: what the model computed for them is no number, or infinite.
    """

    tokens: dict[int, list[TokenOutput]] = field(default_factory=dict)
    vectors: dict[int, bytes] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    garbage: set[int] = field(default_factory=set)
