"""Which of a model's workers computes a request. Pure.

The daemon does not know what a token means. It knows keyed hashes of what prompts begin with
(`Prepared.prefixes`), and which worker it gave them to: that one has the KV cells of that
beginning, unless it has dropped them for want of room. Then they are computed again, there as
anywhere.

Rules: a request goes to the worker that was given the longest beginning of its prompt, if that has
a free slot; else to the one with most free slots, of equals to the one that has it prepared, and
then to the one with the fewest requests.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    Prefixes = Sequence[tuple[int, bytes]]
    """The length in tokens and a hash of each."""

MIN_PREFIX_TOKENS: Final = 256
"""A worker keeps shorter beginnings only while somebody computes with them (docs/structure.md)."""

MAX_BEGINNINGS: Final = 4096
"""Remembered for each worker, about 1 MB: many more than it can hold the cells of."""


class Beginnings:
    """What the prompts that one worker was given began with. `domain` is whose requests share."""

    def __init__(self, *, max_entries: int = MAX_BEGINNINGS) -> None:
        self._max = max_entries
        self._known: OrderedDict[tuple[str, bytes], int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def longest(self, domain: str, prefixes: Prefixes) -> int:
        """Tokens of the longest of these beginnings that it was given; 0 if none."""
        known = (self._known.get((domain, digest), 0) for _, digest in prefixes)
        return max(known, default=0)

    def note(self, domain: str, prefixes: Prefixes) -> None:
        """It is given a prompt with these beginnings."""
        for length, digest in prefixes:
            if length >= MIN_PREFIX_TOKENS:
                self._known[domain, digest] = length
                self._known.move_to_end((domain, digest))
        while len(self._known) > self._max:
            self._known.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Demand:
    """What of a request decides where it is computed: whose requests it may share with, what its
    prompt begins with, and the slots it takes. Before it is prepared, nothing is known of it."""

    domain: str = ""
    prefixes: Prefixes = ()
    num_sequences: int = 0
    has_begun: bool = False
    """In a worker that died. Rather than in a full one it goes on in one that is on its way."""


@dataclass(frozen=True, slots=True)
class Option:
    """One worker. `busy` of its `slots` are taken; it was given so many tokens of the prompt
    before; it has so many requests, computed or not. `has_it`: this one is prepared there."""

    slots: int
    busy: int
    known_tokens: int = 0
    has_it: bool = False
    num_calls: int = 0


def choose(options: Sequence[Option], *, num_sequences: int) -> int:
    """The index of the one that is to compute a request of so many sequences; there must be one."""
    holders = [
        index
        for index, each in enumerate(options)
        if each.known_tokens and each.busy + num_sequences <= each.slots
    ]
    if holders:
        return max(holders, key=lambda i: (options[i].known_tokens, _by_load(options[i])))
    return max(range(len(options)), key=lambda i: _by_load(options[i]))


def _by_load(option: Option) -> tuple[int, bool, int]:
    """More is better. It may have less than no free slot: what comes from a worker that died is
    given to the others at once."""
    return option.slots - option.busy, option.has_it, -option.num_calls
