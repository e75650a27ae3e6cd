"""Guessing tokens ahead, so that one step checks several of them.

Owns how much is guessed for a sequence, and the guesses that need no model: what followed the last
few tokens when they stood in the text before (prompt lookup). A guess changes no text, only how
many steps it takes: a backend keeps just those guesses that it would have sampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

FIRST_LENGTH: Final = 2
LONGEST: Final = 64
FIRST_REST: Final = 8
LONGEST_REST: Final = 256
NGRAM_TOKENS: Final = 3
"""Fewer tokens stand in ordinary text twice too often to say what comes next."""


class Drafter(Protocol):
    """Where guesses come from."""

    def propose(self, wanted: Mapping[int, tuple[list[int], int]]) -> dict[int, list[int]]:
        """For each slot its tokens and how many guesses it wants at most; what is likely to follow
        them. Slots without a guess are left out. Does not modify."""
        ...

    def forget(self, slot: int) -> None:
        """The slot has a new owner."""
        ...


@dataclass(slots=True)
class Guessing:
    """How well guesses about one sequence went, and how many to make next.

    The number doubles while all of them are right. After a step with the fewest guesses of which
    not all were, nothing is guessed for a number of steps that doubles, too: text that does not
    repeat itself costs a few wrong guesses, once. One right guess of two is no gain: on a CPU three
    tokens are computed in the time of two or three steps (2.4 with SmolLM2, 2026-12-01).
    """

    length: int = FIRST_LENGTH
    num_proposed: int = 0
    num_accepted: int = 0
    _num_to_rest: int = 0
    _next_rest: int = FIRST_REST

    def next_length(self) -> int:
        """How many tokens to guess in this step; counts it as one of those to rest."""
        if self._num_to_rest:
            self._num_to_rest -= 1
            return 0
        return self.length

    def note(self, num_proposed: int, num_accepted: int) -> None:
        """What became of a step's guesses."""
        self.num_proposed += num_proposed
        self.num_accepted += num_accepted
        if num_accepted == num_proposed:
            self.length = min(2 * self.length, LONGEST)
            self._next_rest = FIRST_REST
        elif num_accepted and num_proposed > FIRST_LENGTH:
            self.length = max(FIRST_LENGTH, num_accepted)
        else:
            self.length = FIRST_LENGTH
            self._num_to_rest = self._next_rest
            self._next_rest = min(2 * self._next_rest, LONGEST_REST)


class NgramDrafter:
    """Guesses that text goes on as it did after the same `NGRAM_TOKENS` tokens before.

    Saxena, "Prompt Lookup Decoding", 2023. An index per slot, which grows with its tokens.
    """

    def __init__(self) -> None:
        self._indexes: dict[int, _NgramIndex] = {}

    def propose(self, wanted: Mapping[int, tuple[list[int], int]]) -> dict[int, list[int]]:
        """See `Drafter.propose`."""
        found = {
            slot: self._indexes.setdefault(slot, _NgramIndex()).propose(tokens, length)
            for slot, (tokens, length) in wanted.items()
        }
        return {slot: guesses for slot, guesses in found.items() if guesses}

    def forget(self, slot: int) -> None:
        """See `Drafter.forget`."""
        self._indexes.pop(slot, None)


class _NgramIndex:
    """Where each run of `NGRAM_TOKENS` tokens ended last, short of the end of the text."""

    def __init__(self) -> None:
        self._end_of: dict[tuple[int, ...], int] = {}
        self._num_indexed = NGRAM_TOKENS

    def propose(self, tokens: list[int], length: int) -> list[int]:
        for end in range(self._num_indexed, len(tokens)):
            self._end_of[tuple(tokens[end - NGRAM_TOKENS : end])] = end
        self._num_indexed = max(self._num_indexed, len(tokens))
        found = self._end_of.get(tuple(tokens[-NGRAM_TOKENS:]))
        return [] if found is None else tokens[found : found + length]
