"""Guesses for speculation: which kind a model is configured to use, and those of a draft model.

Owns the draft model and what it has computed in each slot. The model that is drafted for decides
what becomes of the guesses (`engine/speculation.py`).

Invariant: a draft model that fails costs its guesses, never an answer.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from openclawd.backends.base import CannotLoad
from openclawd.engine.batch import Batch, BatchKind, Chunk, DropCells, Opening, Outputs
from openclawd.engine.prefixes import num_same
from openclawd.engine.sampling import SamplingParams
from openclawd.engine.speculation import NgramDrafter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from openclawd.backends.base import Backend
    from openclawd.engine.batch import CacheOp
    from openclawd.engine.speculation import Drafter

_GREEDY: Final = SamplingParams(temperature=0)
_COMPARED_TOKENS: Final = 97
"""Every so-many-th token is compared: no two vocabularies of one size agree on a hundredth of their
tokens and not on the rest."""

_log = logging.getLogger(__name__)


def make_drafter(
    method: str, backend: Backend, load_draft: Callable[[], Backend]
) -> Drafter | None:
    """The source of guesses for `method`: off, ngram or draft. Raises `CannotLoad`."""
    if method == "off":
        return None
    if method == "ngram":
        return NgramDrafter()
    draft = load_draft()
    _check_vocabulary(backend, draft)
    _check_memory(draft)
    return ModelDrafter(draft)


class ModelDrafter:
    """What a smaller model with the same vocabulary would say. Owns `backend`.

    Leviathan, Kalman, Matias: "Fast Inference from Transformers via Speculative Decoding", 2023;
    here the guesses are the draft's likeliest tokens.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._tokens: dict[int, list[int]] = {}  # by slot, those that the draft has cells of
        self._has_failed = False

    def propose(self, wanted: Mapping[int, tuple[list[int], int]]) -> dict[int, list[int]]:
        """See `Drafter.propose`."""
        if self._has_failed:
            return {}
        guesses: dict[int, list[int]] = {slot: [] for slot in wanted}
        known = {slot: list(tokens) for slot, (tokens, _) in wanted.items()}
        open_slots = set(wanted)
        while open_slots:
            following = self._follow({slot: known[slot] for slot in open_slots})
            if following is None:
                break
            for slot, token in following.items():
                guesses[slot].append(token)
                known[slot].append(token)
                is_full = len(guesses[slot]) == wanted[slot][1]
                if is_full or self._backend.is_end(token):
                    open_slots.discard(slot)
        return {slot: tokens for slot, tokens in guesses.items() if tokens}

    def forget(self, slot: int) -> None:
        """See `Drafter.forget`."""
        self._tokens.pop(slot, None)

    def _follow(self, texts: Mapping[int, list[int]]) -> dict[int, int] | None:
        """The likeliest token after each text; None when the draft model fails."""
        following: dict[int, int] = {}
        while len(following) < len(texts):
            batch = self._batch({s: text for s, text in texts.items() if s not in following})
            result = self._backend.forward(batch)
            if not isinstance(result, Outputs) or result.garbage:
                self._has_failed = True
                _log.error("the draft model failed; answers go on without its guesses")
                return None
            for chunk in batch.chunks:
                self._tokens[chunk.slot] = texts[chunk.slot][: chunk.position + len(chunk.tokens)]
            following |= {slot: outputs[0].token for slot, outputs in result.tokens.items()}
        return following

    def _batch(self, texts: Mapping[int, list[int]]) -> Batch:
        """As much of the texts as a step holds, one after the other."""
        budget = self._backend.limits.batch_tokens
        chunks: list[Chunk] = []
        opened: list[Opening] = []
        ops: list[CacheOp] = []
        for slot, text in texts.items():
            start = self._num_computed(slot, text)
            end = min(len(text), start + budget)
            if start == end:
                break
            if slot not in self._tokens:
                opened.append(Opening(slot, (), 0, _GREEDY))
            ops.append(DropCells(slot, start))
            chunks.append(Chunk(slot, start, text[start:end], num_outputs=int(end == len(text))))
            budget -= end - start
        return Batch(BatchKind.GENERATION, chunks, opened, ops)

    def _num_computed(self, slot: int, text: list[int]) -> int:
        """How much of a text the slot has, short of the last token, which is always computed."""
        return num_same(self._tokens.get(slot, []), text[:-1], offset=0)


def _check_vocabulary(backend: Backend, draft: Backend) -> None:
    size = backend.info.vocab_size
    is_same = size == draft.info.vocab_size and all(
        backend.piece(token) == draft.piece(token) for token in range(0, size, _COMPARED_TOKENS)
    )
    if not is_same:
        raise CannotLoad(
            f"the draft model has another vocabulary ({draft.info.vocab_size} tokens; the model "
            f"itself has {size})",
            hint="choose a draft model of the same family, or speculation with method ngram",
            permanent=True,
        )


def _check_memory(draft: Backend) -> None:
    if not draft.limits.can_drop_last:
        raise CannotLoad(
            "the draft model is recurrent or hybrid, so it cannot take back what it guessed wrong",
            hint="choose a draft model with attention alone, or speculation with method ngram",
            permanent=True,
        )
