"""The sequences that have no slot, in the order in which they should get one.

Owns that order: higher priorities first, within one the order of arrival, those that were preempted
before those that never ran; of generations and embeddings with the same priority, by turns.
"""

from __future__ import annotations

import bisect
import heapq
from typing import TYPE_CHECKING

from openclawd.engine.batch import BatchKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openclawd.engine.sequence import Sequence

Entry = tuple[int, int, "Sequence"]
"""Negative priority, number in line, sequence."""


class WaitingLine:
    """Iterating gives every sequence, in no useful order; `in_order` is for admission."""

    def __init__(self) -> None:
        self._lines: dict[BatchKind, list[Entry]] = {kind: [] for kind in BatchKind}
        self._last = 0
        self._first = 0

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[Sequence]:
        return (entry[2] for line in self._lines.values() for entry in line)

    def in_order(self, next_kind: BatchKind) -> Iterator[Sequence]:
        """Who should be admitted first; `next_kind` goes first among equals. Not to be used on once
        the line has changed."""
        lines = self._lines[next_kind], self._lines[other_kind(next_kind)]
        return (entry[2] for entry in heapq.merge(*lines, key=_negative_priority))

    def add(self, sequence: Sequence) -> None:
        self._last += 1
        self._insert(sequence, self._last)

    def put_back(self, sequence: Sequence) -> None:
        """Before all others of its priority."""
        self._first -= 1
        self._insert(sequence, self._first)

    def remove(self, sequence: Sequence) -> None:
        self._pop(sequence)

    def reprioritize(self, sequence: Sequence, priority: int) -> None:
        """Move it to where it stands among those of another priority."""
        _, number, _ = self._pop(sequence)
        sequence.priority = priority
        self._insert(sequence, number)

    def _pop(self, sequence: Sequence) -> Entry:
        line = self._lines[sequence.kind]
        return line.pop(next(i for i, entry in enumerate(line) if entry[2] is sequence))

    def _insert(self, sequence: Sequence, number: int) -> None:
        bisect.insort(self._lines[sequence.kind], (-sequence.priority, number, sequence))


def other_kind(kind: BatchKind) -> BatchKind:
    return BatchKind.EMBEDDING if kind is BatchKind.GENERATION else BatchKind.GENERATION


def _negative_priority(entry: Entry) -> int:
    return entry[0]
