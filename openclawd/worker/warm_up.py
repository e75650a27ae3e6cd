"""Whether a model works: a few words that are computed for nobody.

Owns the smallest prompt that is computed as prompts are (native code has other ways for a single
token), with one token after it where the model generates. They are computed when a model has been
loaded, and when there is reason to doubt that its memory is sound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from openclawd.backends.base import DecodeFailed, NoFreeCells, Stopped
from openclawd.engine.batch import Batch, BatchKind, Chunk, DropCells, Opening, Outputs
from openclawd.engine.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openclawd.backends.base import Backend, ForwardResult

GARBAGE: Final = "its numbers are garbage (not-a-number or infinite)"

_SLOT: Final = 0

_PROMPT_TOKENS: Final = 15
"""So that a machine whose compiler is at odds with the code for prompts (seen with AMX, see
requirements/cxxflags.sh) fails the load, and not somebody's request."""


def trouble_of(backend: Backend) -> str | None:
    """What is wrong with a model, as the rest of a sentence; None if it works. The first slot must
    be free; it is left empty."""
    kind = BatchKind.GENERATION if backend.info.can_generate else BatchKind.EMBEDDING
    trouble = None
    for batch in _batches(backend, kind):
        trouble = trouble or _what_is_wrong(backend.forward(batch))
    backend.forward(Batch(kind, [], cache_ops=[DropCells(_SLOT)]))
    return trouble


def _what_is_wrong(result: ForwardResult) -> str | None:
    match result:
        case Outputs(garbage=garbage):
            return GARBAGE if garbage else None
        case NoFreeCells():
            return "no free KV cells"
        case DecodeFailed(message):
            return message
        case Stopped():
            raise AssertionError("nobody asked it to stop")


def _batches(backend: Backend, kind: BatchKind) -> Iterator[Batch]:
    """A prompt in an empty slot, then one token of the answer."""
    word = backend.tokenize("a", add_special=False, parse_special=False) or [0]
    tokens = word[:1] * min(_PROMPT_TOKENS, backend.info.context - 1)
    sampling = SamplingParams(temperature=0) if kind is BatchKind.GENERATION else None
    yield Batch(
        kind,
        chunks=[Chunk(_SLOT, position=0, tokens=tokens, num_outputs=1)],
        opened=[Opening(_SLOT, tuple(tokens), len(tokens), sampling)],
        cache_ops=[DropCells(_SLOT)],
    )
    if kind is BatchKind.GENERATION:
        yield Batch(kind, [Chunk(_SLOT, position=len(tokens), tokens=word[:1], num_outputs=1)])
