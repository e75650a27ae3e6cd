"""Whether a model works: a word that is computed for nobody.

Owns the smallest batch there is. It is computed when a model has been loaded, and when there is
reason to doubt that its memory is sound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from openclawd.backends.base import DecodeFailed, NoFreeCells, Stopped
from openclawd.engine.batch import Batch, BatchKind, Chunk, DropCells, Opening, Outputs
from openclawd.engine.sampling import SamplingParams

if TYPE_CHECKING:
    from openclawd.backends.base import Backend

GARBAGE: Final = "its numbers are garbage (not-a-number or infinite)"

_SLOT: Final = 0


def trouble_of(backend: Backend) -> str | None:
    """What is wrong with a model, as the rest of a sentence; None if it works. The first slot must
    be free; it is left empty."""
    batch = _batch(backend)
    result = backend.forward(batch)
    backend.forward(Batch(batch.kind, [], cache_ops=batch.cache_ops))
    match result:
        case Outputs(garbage=garbage):
            return GARBAGE if garbage else None
        case NoFreeCells():
            return "no free KV cells"
        case DecodeFailed(message):
            return message
        case Stopped():
            raise AssertionError("nobody asked it to stop")


def _batch(backend: Backend) -> Batch:
    """A word in an empty slot."""
    can_generate = backend.info.can_generate
    kind = BatchKind.GENERATION if can_generate else BatchKind.EMBEDDING
    tokens = backend.tokenize("a", add_special=True, parse_special=False) or [0]
    sampling = SamplingParams(temperature=0) if can_generate else None
    return Batch(
        kind,
        chunks=[Chunk(_SLOT, position=0, tokens=tokens, num_outputs=1)],
        opened=[Opening(_SLOT, tuple(tokens), len(tokens), sampling)],
        cache_ops=[DropCells(_SLOT)],
    )
