"""What the scheduler asks of a backend for one step, and what it gets back.

Owns the seam: only slots, positions, token ids and finished vectors cross it. A batch is
homogeneous: all its chunks want tokens sampled, or all want hidden states averaged.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openclawd.engine.sampling import SamplingParams


class BatchKind(enum.Enum):
    GENERATION = "generation"
    EMBEDDING = "embedding"


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


CacheOp = CopyCells | DropCells


@dataclass(frozen=True, slots=True)
class Opening:
    """A slot is taken by a sequence. `tokens` are all it has so far, for penalties that look back;
    `sampling` is None for embeddings. Its cells are the concern of the batch's `cache_ops`."""

    slot: int
    tokens: tuple[int, ...]
    sampling: SamplingParams | None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence, at positions `[position, position + len(tokens))`.

    `wants_output`: after these tokens everything known of the sequence is computed, so its next
    token is sampled, or its vector is complete.
    """

    slot: int
    position: int
    tokens: list[int]
    wants_output: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: `cache_ops` are done in their order, then `opened` slots are set up, then the
    chunks are computed."""

    kind: BatchKind
    chunks: list[Chunk]
    opened: list[Opening] = field(default_factory=list)
    cache_ops: list[CacheOp] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(len(chunk.tokens) for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class Outputs:
    """For each slot whose chunk wanted an output: the sampled token, or the normalised vector as
    little-endian float32 bytes."""

    tokens: dict[int, int] = field(default_factory=dict)
    vectors: dict[int, bytes] = field(default_factory=dict)
