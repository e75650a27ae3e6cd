"""Who holds which slot, how many KV cells each is promised, and which prefixes are kept.

Owns the accounting; the cells themselves are a backend's. A sequence is promised all the cells it
can ever need before it starts, so that a started sequence never waits for room. Kept prefixes that
nobody uses count as room: they are evicted to the host's memory, least recently used first, when a
batch needs it. Pinned ones, which sequences of domain None compute, are never evicted.

Invariants (`check`): every slot is free or held once; promised cells + those of prefixes in use
never exceed all cells; computed cells + those of all prefixes never do either.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from openclawd.engine.batch import BatchKind, DropCells, ForgetParked, ParkSlot, ResumeSlot
from openclawd.engine.prefixes import Match, Owner, PrefixTree

if TYPE_CHECKING:
    from collections.abc import Collection

    from openclawd.engine.batch import CacheOp
    from openclawd.engine.prefixes import KeptPrefix, Node
    from openclawd.engine.sequence import Sequence


_WORTH_RESTORING: Final = 16
"""To copy cells to the host's memory and back takes less than a hundredth of computing them: 54 ms
and 15.9 s for 2,000 tokens (SmolLM2 on two busy cores, measured 2026-11-30)."""


@dataclass(slots=True)
class _Holding:
    """What a running sequence holds. `num_shared` of its computed tokens are in cells of the tree,
    on the path to `anchor`; the rest is its own."""

    sequence: Sequence
    anchor: Node
    num_shared: int

    @property
    def num_promised(self) -> int:
        return self.sequence.num_cells_needed - self.num_shared

    @property
    def num_computed(self) -> int:
        return self.sequence.num_computed_tokens - self.num_shared


class KvCache:
    """`num_slots` sequences at most, sharing `num_cells` KV cells (one token each).

    `num_tags` more sequence ids, from `num_slots` on, may be used for kept prefixes; 0 keeps none.
    Prefixes shorter than `min_kept_tokens` are kept for sequences of the same request alone, and
    those that nobody uses take `max_kept_cells` at most; neither holds for pinned ones. The host's
    memory takes `max_stowed_cells` of prefixes, and `max_parked_cells` of preempted sequences.
    """

    def __init__(
        self,
        num_slots: int,
        num_cells: int,
        *,
        num_tags: int = 0,
        min_kept_tokens: int = 1,
        max_kept_cells: int | None = None,
        max_stowed_cells: int = 0,
        max_parked_cells: int = 0,
    ) -> None:
        self.num_slots = num_slots
        self.num_cells = num_cells
        self.keeps_prefixes = num_tags > 0
        self.min_kept_tokens = min_kept_tokens
        self._max_kept_cells = num_cells if max_kept_cells is None else max_kept_cells
        self._max_parked_cells = max_parked_cells
        self._num_parked_cells: dict[int, int] = {}  # by key
        self._next_key = 0
        self._free_slots = list(range(num_slots))  # a heap: the lowest slot is taken first
        self._held: dict[int, _Holding] = {}
        tags = list(range(num_slots, num_slots + num_tags))
        self._tree = PrefixTree(tags, max_stowed_cells=max_stowed_cells)
        # A backend that was warmed up may hold cells of nobody.
        self._ops: list[CacheOp] = [DropCells(slot) for slot in range(num_slots)]

    # ---- questions ----

    @property
    def num_used_cells(self) -> int:
        """Cells that hold a computed token, each counted once however many share it."""
        own = sum(holding.num_computed for holding in self._held.values())
        return own + self._tree.num_cells

    @property
    def num_kept_cells(self) -> int:
        """Of these, the ones in kept prefixes."""
        return self._tree.num_cells

    @property
    def num_stowed_cells(self) -> int:
        """Cells of kept prefixes in the host's memory."""
        return self._tree.num_stowed_cells

    @property
    def num_needed_cells(self) -> int:
        """Of the used ones, those without which running sequences could not go on: all but the
        kept prefixes that nobody uses."""
        return self.num_used_cells - self._tree.num_cells + self._tree.num_locked_cells

    def held_slots(self) -> frozenset[int]:
        return frozenset(self._held)

    def match(self, sequence: Sequence) -> Match:
        """The longest kept prefix of a sequence, short of its last token: that one is computed in
        any case, to get the next. A parked sequence has cells of its own."""
        return self._match(sequence, sequence.owner)

    def is_pinned(self, tokens: list[int]) -> bool:
        """With no adapter."""
        return self._tree.match(Owner(None), tokens).num_tokens == len(tokens)

    def num_cells_for(self, sequence: Sequence) -> int:
        """The most cells that a sequence could ever have, with those that are pinned of its prefix:
        one that needs more would wait for ever."""
        pinned = self._match(sequence, sequence.owner.everybody())
        return self.num_cells - self._tree.num_pinned_cells + pinned.num_tokens

    @property
    def has_free_slot(self) -> bool:
        return bool(self._free_slots)

    def can_acquire(self, sequence: Sequence, *, without: Collection[int] = ()) -> bool:
        """Is there a slot and room for a sequence? `without`: slots to be thought of as released.
        What these share is not counted as freed, since others may share it, too."""
        has_slot = bool(self._free_slots or without)
        return has_slot and self._affordable_match(sequence, without) is not None

    def kept(self) -> list[KeptPrefix]:
        """See `PrefixTree.kept`."""
        return self._tree.kept()

    # ---- commands ----

    def adopt(self, owner: Owner, tokens: list[int], start: int) -> int | None:
        """See `PrefixTree.adopt`. None also if there is no room in the cache."""
        num_new = len(tokens) - start if owner.is_everybody else 0
        has_room = self.num_used_cells + num_new <= self.num_cells
        return self._tree.adopt(owner, tokens, start) if has_room else None

    def disown(self, tag: int) -> None:
        self._tree.disown(tag)

    def acquire(self, sequence: Sequence) -> int:
        """The slot that a sequence now holds, with what was parked of it, or else with the cells of
        the longest kept prefix in it.

        Sets `num_computed_tokens` to their number. Only after `can_acquire` said so.
        """
        match = self._affordable_match(sequence)
        assert match is not None
        slot = heapq.heappop(self._free_slots)
        self._tree.lock(match.node)
        self.make_room(self._tree.num_stowed_in(match.node))
        self._ops += self._tree.restore(match.node)
        if sequence.parked is None:
            self._ops += self._tree.copy_to(slot, match)
            sequence.num_computed_tokens = match.num_tokens
        else:
            self.make_room(sequence.num_computed_tokens)
            self._ops.append(ResumeSlot(sequence.parked, slot))
            self._unpark(sequence)
        self._held[slot] = _Holding(sequence, match.node, match.num_tokens)
        return slot

    def lose(self, tag: int) -> list[int]:
        """A prefix could not be restored, and is forgotten. The slots that have just been given
        its cells: their sequences have nothing computed any more, and the slots are to be released.
        """
        slots = []
        for slot, holding in self._held.items():
            if any(node.tag == tag for node in holding.anchor.path()):
                self._tree.unlock(holding.anchor)
                holding.anchor, holding.num_shared = self._tree.root, 0
                holding.sequence.num_computed_tokens = 0
                self._ops.append(DropCells(slot))  # before anything that it shared is stowed
                slots.append(slot)
        self._ops += self._tree.lose(tag)
        return slots

    def park(self, slot: int) -> bool:
        """Give back a slot; what its sequence has computed goes to the host's memory, if there is
        room. False: it is lost, and has to be computed again.

        Copying to and fro is always cheaper: of 16 to 1,000 tokens of SmolLM2 (23 kB each) it took
        a thousandth of what computing them took (measured 2026-11-23, one core).
        """
        sequence = self._held[slot].sequence
        num_cells = sequence.num_computed_tokens
        has_room = sum(self._num_parked_cells.values()) + num_cells <= self._max_parked_cells
        # What is parked comes back with cells of its own, beside those that are pinned.
        fits_again = sequence.num_cells_needed <= self.num_cells - self._tree.num_pinned_cells
        is_generation = sequence.kind is BatchKind.GENERATION
        can_park = has_room and fits_again and num_cells > 0 and is_generation
        if can_park:
            self._next_key += 1
            sequence.parked = self._next_key
            self._num_parked_cells[sequence.parked] = num_cells
            self._ops.append(ParkSlot(slot, sequence.parked))
        else:
            sequence.num_computed_tokens = 0
        self.release(slot)
        return can_park

    def forget_parked(self, sequence: Sequence) -> None:
        """A sequence that may be parked will not be resumed."""
        if sequence.parked is not None:
            self._ops.append(ForgetParked(sequence.parked))
            self._unpark(sequence)

    def truncate(self, slot: int, end: int) -> None:
        """The cells of positions `[num_computed_tokens, end)` were computed for tokens that are not
        the sequence's."""
        start = self._held[slot].sequence.num_computed_tokens
        if start < end:
            self._ops.append(DropCells(slot, start, end))

    def keep(self, slot: int, *, for_siblings: bool = False) -> None:
        """Keep what a sequence has computed so far, for others; if it is short, only for siblings
        that wait for it: sequences of the same request.

        Where another one was quicker to compute the same, its cells take the place of the slot's:
        so what a sequence shares is always a prefix, and keeping never takes more room.
        """
        holding = self._held[slot]
        sequence = holding.sequence
        if not self._is_worth_keeping(sequence, for_siblings=for_siblings):
            return
        computed = sequence.tokens[: sequence.num_computed_tokens]
        insertion = self._tree.insert(sequence.owner, computed, slot)
        self._ops += insertion.ops
        if insertion.node is None:
            return
        if insertion.num_known > holding.num_shared:
            known = Match(insertion.node, insertion.num_known)
            self._ops.append(DropCells(slot, holding.num_shared, insertion.num_known))
            self._ops += self._tree.copy_to(slot, known, start=holding.num_shared)
        self._tree.lock(insertion.node)
        self._tree.unlock(holding.anchor)
        holding.anchor = insertion.node
        holding.num_shared = len(computed)
        self._evict_surplus()  # it may have been the last user of what lies beyond the parting

    def release(self, slot: int, *, for_siblings: bool = False) -> None:
        """Give back a slot and its cells; those that were kept stay with the tree. Short ones that
        nobody else uses go, unless siblings still wait for them."""
        holding = self._held.pop(slot)
        self._tree.unlock(holding.anchor)
        self._ops.append(DropCells(slot))
        heapq.heappush(self._free_slots, slot)
        if not for_siblings:
            self._ops += self._tree.drop_short(holding.anchor, min_tokens=self.min_kept_tokens)
        self._evict_surplus()

    def make_room(self, num_tokens: int) -> None:
        """Evict kept prefixes until this many more tokens fit."""
        while self.num_used_cells + num_tokens > self.num_cells:
            ops = self._tree.evict()
            assert ops is not None, "what is promised always fits"
            self._ops += ops

    def forget_prefixes(self) -> bool:
        """Evict every prefix that nobody uses from the cache. False if there was none."""
        num_before = len(self._ops)
        while ops := self._tree.evict():
            self._ops += ops
        return len(self._ops) > num_before

    def take_ops(self) -> list[CacheOp]:
        """What the backend is to do before the next batch, in order."""
        ops, self._ops = self._ops, []
        return ops

    def check(self) -> None:
        """Raise `AssertionError` if the accounting does not add up."""
        assert sorted([*self._free_slots, *self._held]) == list(range(self.num_slots))
        self._tree.check()
        promised = sum(holding.num_promised for holding in self._held.values())
        assert promised + self._tree.num_locked_cells <= self.num_cells
        assert self._tree.num_cells - self._tree.num_locked_cells <= self._max_kept_cells
        assert self.num_used_cells <= self.num_cells
        assert sum(self._num_parked_cells.values()) <= self._max_parked_cells
        for holding in self._held.values():
            assert holding.sequence.parked is None
            assert 0 <= holding.num_shared <= holding.sequence.num_computed_tokens

    def _evict_surplus(self) -> None:
        """Nobody's prefixes take `max_kept_cells` at most."""
        while self._tree.num_cells - self._tree.num_locked_cells > self._max_kept_cells:
            ops = self._tree.evict()
            assert ops is not None, "cells that nobody uses are in leaves, or lead to such"
            self._ops += ops

    def _match(self, sequence: Sequence, owner: Owner) -> Match:
        """Of a stowed node no part that is too small to be worth bringing all of it back, unless
        the sequence will be kept: then the node is split there, and brought back only once."""
        is_open = self._may_share(sequence) and sequence.parked is None
        match = self._tree.match(owner, sequence.tokens[:-1] if is_open else [])
        node, num_of_node = match.node, match.num_tokens - match.node.start
        if node.parent is None or not node.is_stowed:
            return match
        is_worth_it = num_of_node * _WORTH_RESTORING >= len(node.tokens)
        is_to_be_kept = sequence.num_prompt_tokens >= self.min_kept_tokens
        return match if is_worth_it or is_to_be_kept else Match(node.parent, node.start)

    def _affordable_match(self, sequence: Sequence, without: Collection[int] = ()) -> Match | None:
        """The longest kept prefix with which a sequence fits beside what is promised; None if it
        does not fit. One that ends inside a node keeps all of its cells from being evicted, so
        that a shorter one, which ends with a node, may fit when the longest does not."""
        matches = [match := self.match(sequence)]
        if match.num_tokens < match.node.end and match.node.parent is not None:
            matches.append(Match(match.node.parent, match.node.start))
        return next((match for match in matches if self._fits(sequence, match, without)), None)

    def _fits(self, sequence: Sequence, match: Match, without: Collection[int]) -> bool:
        newly_locked = sum(len(node.tokens) for node in match.node.path() if not node.num_users)
        held = (holding for slot, holding in self._held.items() if slot not in without)
        promised = sum(holding.num_promised for holding in held)
        taken = promised + self._tree.num_locked_cells
        return taken + newly_locked + sequence.num_cells_needed - match.num_tokens <= self.num_cells

    def _is_worth_keeping(self, sequence: Sequence, *, for_siblings: bool) -> bool:
        is_long = sequence.num_computed_tokens >= self.min_kept_tokens
        is_pinned = sequence.owner.is_everybody
        return self._may_share(sequence) and (is_long or for_siblings or is_pinned)

    def _unpark(self, sequence: Sequence) -> None:
        assert sequence.parked is not None
        del self._num_parked_cells[sequence.parked]
        sequence.parked = None

    def _may_share(self, sequence: Sequence) -> bool:
        return self.keeps_prefixes and sequence.shares_prefix
