"""Which sequences run, and what becomes of them.

Owns the waiting and running sequences and the slots. Knows no model, no clock and no pipe: events
come in (`add`, `abort`, `reprioritize`, `update`, `stop_aside`, `preempt`, `fail`, `blame`),
batches and effects go out.

One notion covers prefill, chunked prefill, decode and speculation: a running sequence has tokens
that are known but not computed, and each step computes some of them (`steps.py`). When none is
left, the step gives the next token, and of guessed tokens behind it those that are right.

Invariants (`check`): every slot is owned once; every sequence ends once; a sequence that was added
is waiting or running until it ends; nothing is admitted that its promised cells could not hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from openclawd.engine.batch import Batch, BatchKind, Opening, Outputs, TokenOutput
from openclawd.engine.kvcache import KvCache
from openclawd.engine.prefixes import num_same
from openclawd.engine.sequence import Effect, Embedded, Ended, Finish, Sampled, Sequence, State
from openclawd.engine.steps import Steps
from openclawd.engine.waiting import WaitingLine, other_kind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from openclawd.engine.limits import Limits
    from openclawd.engine.prefixes import KeptPrefix, Owner
    from openclawd.engine.sequence import Vocabulary
    from openclawd.engine.speculation import Drafter

MIN_PREFIX_TO_AWAIT: Final = 32
"""Fewer tokens are computed twice rather than waited for: at about 3 ms a token they take as long
as two or three steps of eight streams (SmolLM2 on two cores, docs/performance.md)."""


@dataclass(frozen=True, slots=True)
class NeverFits:
    """A sequence was refused, because even alone it would need more tokens than there can be."""

    num_tokens_needed: int
    num_tokens_allowed: int


class Scheduler:
    """See the module. Not thread-safe: it belongs to the engine thread."""

    def __init__(
        self, limits: Limits, vocabulary: Vocabulary, drafter: Drafter | None = None
    ) -> None:
        self._limits = limits
        self._vocabulary = vocabulary
        self._drafter = drafter if limits.can_drop_last else None
        self._steps = Steps(limits, self._drafter)
        self._kv = KvCache(
            limits.num_slots,
            limits.kv_tokens,
            num_tags=limits.num_prefix_tags,
            min_kept_tokens=limits.min_kept_tokens,
            max_kept_cells=round(limits.kept_share * limits.kv_tokens),
            max_stowed_cells=round(limits.stowed_share * limits.kv_tokens),
            max_parked_cells=round(limits.parked_share * limits.kv_tokens),
        )
        self._waiting = WaitingLine()
        self._running: dict[int, Sequence] = {}  # by slot, in the order of admission
        self._next_admitted = BatchKind.GENERATION
        self._is_admission_paused = False
        self._num_begun = 0
        self.num_preemptions = 0
        """Slots that were taken from sequences that were not done."""
        self._aside: Sequence | None = None  # is being computed
        self._num_aside_tokens = 0
        self._is_aside_wanted = True
        self._is_aside_cancelled = False

    # ---- questions ----

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_used_tokens(self) -> int:
        """KV cells that hold a computed token now, of running sequences and kept prefixes."""
        return self._kv.num_used_cells

    def is_pinned(self, tokens: list[int]) -> bool:
        """Are the cells of these tokens there for good, and for everybody? They are once a sequence
        of domain None has ended that begins with them, unless the prefix tags did not suffice."""
        return self._kv.is_pinned(tokens)

    @property
    def num_kept_tokens(self) -> int:
        """Of these, the ones in kept prefixes, whoever uses them."""
        return self._kv.num_kept_cells

    @property
    def num_stowed_tokens(self) -> int:
        """Tokens of kept prefixes in the host's memory."""
        return self._kv.num_stowed_cells

    @property
    def num_needed_tokens(self) -> int:
        """KV cells that running sequences need now; kept prefixes that nobody uses are room."""
        return self._kv.num_needed_cells

    @property
    def num_longest_tokens(self) -> int:
        """Prompt and answer of the longest running sequence."""
        return max((len(sequence.tokens) for sequence in self._running.values()), default=0)

    @property
    def is_idle(self) -> bool:
        return not self._running and self.num_waiting == 0

    @property
    def is_aside_wanted(self) -> bool:
        """Is the batch that is being computed aside to be finished?"""
        return self._is_aside_wanted

    def max_aside_s(self) -> float:
        """How long a batch may be computed aside before the next one of the others: not at all
        while one of them has a prompt that is more urgent."""
        assert self._aside is not None
        return self._steps.max_aside_s(self._running.values(), self._aside)

    # ---- prefixes that outlive the process ----

    def kept_prefixes(self) -> tuple[Batch, list[KeptPrefix]]:
        """The kept prefixes that another process has room for, in the order of `PrefixTree.kept`.
        Their cells are there once the batch is done, which computes nothing."""
        return Batch(BatchKind.GENERATION, [], cache_ops=self._kv.take_ops()), self._kv.kept()

    def adopt(self, owner: Owner, tokens: list[int], start: int) -> int | None:
        """Keep a prefix that another process computed: the caller puts the cells from `start` on
        under the tag that is returned, into the cache if it is pinned, else to what is stowed. None
        if what comes before is not kept here just so far, or there is no room."""
        return self._kv.adopt(owner, tokens, start)

    def disown(self, tag: int) -> None:
        """What was adopted last did not come, after all."""
        self._kv.disown(tag)

    # ---- events ----

    def add(self, sequence: Sequence) -> NeverFits | None:
        """Queue a sequence, or refuse it for good."""
        allowed = self._kv.num_cells_for(sequence)
        if not self._limits.splits_prompts:
            allowed = min(allowed, self._limits.budget(sequence.kind))
            allowed = min(allowed, self._limits.max_whole_tokens or allowed)
        if sequence.num_cells_needed > allowed:
            return NeverFits(sequence.num_cells_needed, allowed)
        sequence.arrived = self._num_begun
        self._waiting.add(sequence)
        return None

    def abort(self, rid: int) -> list[Effect]:
        """End every sequence of a request. Nothing happens when there is none. The one that is
        being computed aside ends with its batch, which is not wanted any more."""
        sequences = self._of_request(rid)
        if self._aside in sequences:
            sequences.remove(self._aside)
            self._is_aside_wanted, self._is_aside_cancelled = False, True
        return self._end_all(sequences, Finish.CANCELLED)

    def reprioritize(self, rid: int, priority: int) -> None:
        """Order a request by another priority from now on. Nothing happens when there is none."""
        for sequence in self._of_request(rid):
            if sequence.slot is None:
                self._waiting.reprioritize(sequence, priority)
            else:
                sequence.priority = priority

    def schedule(self) -> Batch | None:
        """The next step, or None when nothing can be computed. One that is aside is followed by
        those of the others until `update`, `stop_aside` or `fail` takes it back; these may have
        nothing but slots to open, for prompts that will be aside."""
        opened = self._admit()
        plan = self._steps.plan(self._running.values(), self._aside)
        self._kv.make_room((plan.num_tokens if plan else 0) + self._num_aside_tokens)
        if plan is None:
            ops = self._kv.take_ops() if opened else []
            return Batch(BatchKind.GENERATION, [], opened, ops) if opened else None
        if plan.aside:
            self._aside, self._num_aside_tokens = plan.aside, plan.num_tokens
        kind, adapter = plan.group
        return Batch(
            kind,
            plan.chunks,
            opened,
            self._kv.take_ops(),
            adapter=adapter,
            is_aside=plan.aside is not None,
        )

    def settle(self) -> Batch | None:
        """When nobody runs: what is to be done of cells, so that the next request does not wait for
        it. None if there is nothing."""
        ops = self._kv.take_ops()
        return Batch(BatchKind.GENERATION, [], cache_ops=ops) if ops else None

    def stop_aside(self) -> list[Effect]:
        """The batch aside is not being computed any more. If its sequence was to be cancelled, it
        ends now."""
        sequence, self._aside, self._num_aside_tokens = self._aside, None, 0
        assert sequence is not None
        is_cancelled, self._is_aside_cancelled = self._is_aside_cancelled, False
        self._is_aside_wanted = True
        return [self._end(sequence, Finish.CANCELLED)] if is_cancelled else []

    def update(
        self, batch: Batch, outputs: Outputs, *, duration_s: float | None = None
    ) -> list[Effect]:
        """Take in what a batch gave, and how long it took if that is known. No other event may come
        between `schedule` and this, unless it is aside."""
        if batch.is_aside and (cancelled := self.stop_aside()):
            return cancelled
        if duration_s is not None and batch.chunks and not batch.copies_cells:
            in_pause = self._aside is not None and not batch.is_aside
            self._steps.note_duration(batch, duration_s, in_pause=in_pause)
        effects: list[Effect] = []
        for chunk in batch.chunks:
            sequence = self._running[chunk.slot]
            was_in_prefill = sequence.is_in_prefill
            num_guesses = max(0, chunk.num_outputs - 1)
            sequence.num_computed_tokens += len(chunk.tokens) - num_guesses
            if not chunk.num_outputs:
                continue
            if failure := outputs.failed.get(chunk.slot):
                effects.append(self._end(sequence, Finish.ERROR, failure=failure))
                continue
            sequence.is_sound = True
            if was_in_prefill:
                self._kv.keep(chunk.slot, for_siblings=self._has_waiting_sibling(sequence))
            if batch.kind is BatchKind.EMBEDDING:
                effects.append(Embedded(sequence, outputs.vectors[chunk.slot]))
                effects.append(self._end(sequence, Finish.STOP))
            else:
                effects += self._append_all(sequence, outputs.tokens[chunk.slot], num_guesses)
        return effects

    def preempt(self, lost: Collection[int] = ()) -> list[Effect]:
        """A backend had no KV cell left for a batch: evict the prefixes that nobody uses, or else
        take back the slot of the sequence that was admitted last, of those with the lowest
        priority. It goes on later. The slots in `lost` should have been resumed and could not be,
        the tags in it restored: their sequences are computed again.

        Nothing is admitted until a sequence ends, or the same batch would come again. A sequence
        that is alone cannot be helped by waiting; it ends.
        """
        for slot in self._running.keys() & lost:
            self._running[slot].num_computed_tokens = 0
        if tags := [owner for owner in lost if owner >= self._limits.num_slots]:
            self._begin_anew({slot for tag in tags for slot in self._kv.lose(tag)})
            return []
        if self._kv.forget_prefixes():
            return []
        sequence = next(victim for victim in self._victims() if victim is not self._aside)
        if len(self._running) == 1:
            return [self._end(sequence, Finish.ERROR)]
        self._take_back(sequence)
        self._is_admission_paused = True
        return []

    def fail(self, batch: Batch) -> list[Effect]:
        """A batch could not be computed: its sequences end, the others stay."""
        if batch.is_aside and (cancelled := self.stop_aside()):
            return cancelled
        return self._end_all([self._running[chunk.slot] for chunk in batch.chunks], Finish.ERROR)

    def blame(self, failure: str) -> list[Effect]:
        """All that a batch gave was garbage, so that it may have spread from one sequence to the
        others (not from what is aside, whose cells come later). End the one that it must have come
        from: the only one there is, or the only one that nothing sound has come from. No other can
        be told."""
        running = [each for each in self._running.values() if each is not self._aside]
        suspects = [sequence for sequence in running if not sequence.is_sound]
        if len(running) == 1:
            suspects = running
        if len(suspects) != 1:
            return []
        return [self._end(suspects[0], Finish.ERROR, failure=failure)]

    def check(self) -> None:
        """Raise `AssertionError` if an invariant does not hold."""
        self._kv.check()
        assert self._kv.held_slots() == frozenset(self._running)
        assert self._running or not self._is_admission_paused
        assert self._aside is None or self._aside.state is State.RUNNING
        assert self._aside is not None or (self._is_aside_wanted and not self._num_aside_tokens)
        for slot, sequence in self._running.items():
            assert sequence.state is State.RUNNING
            assert sequence.slot == slot
            assert 0 < sequence.num_remaining_tokens <= len(sequence.tokens)
            assert len(sequence.tokens) <= sequence.num_cells_needed
        for sequence in self._waiting:
            assert sequence.state is State.WAITING
            assert sequence.slot is None
            assert sequence.parked is not None or sequence.num_computed_tokens == 0
            assert sequence.num_skips <= self._limits.max_skips

    # ---- admission ----

    def _admit(self) -> list[Opening]:
        """Give slots to waiting sequences, in their order, the two kinds taking turns."""
        opened: list[Opening] = []
        while not self._is_admission_paused and (sequence := self._next_admissible()):
            self._waiting.remove(sequence)
            opened += self._open(sequence)
        return opened

    def _next_admissible(self) -> Sequence | None:
        """The first that has a slot and room, if need be taken from lower priorities. It may have
        passed others that need more room; but none of them is passed for ever."""
        skipped: list[Sequence] = []
        for sequence in self._waiting.in_order(self._next_admitted):
            if self._awaits_prefix(sequence):
                continue
            if self._kv.can_acquire(sequence) or self._make_way(sequence):
                for each in skipped:
                    each.num_skips += 1
                return sequence
            if not self._kv.has_free_slot or sequence.num_skips == self._limits.max_skips:
                return None
            skipped.append(sequence)
        return None

    def _make_way(self, sequence: Sequence) -> bool:
        """Preempt sequences of lower priority until this one has room; none if that is no help. If
        one of them is being computed aside, that is given up first."""
        lower = [victim for victim in self._victims() if victim.priority < sequence.priority]
        slots = [victim.slot for victim in lower if victim.slot is not None]
        for count in range(1, len(lower) + 1):
            if self._kv.can_acquire(sequence, without=slots[:count]):
                if self._aside in lower[:count]:
                    self._is_aside_wanted = False
                    return False
                for victim in lower[:count]:
                    self._take_back(victim)
                return True
        return False

    def _victims(self) -> Iterator[Sequence]:
        """Running sequences in the order in which they lose their slots: lowest priority first,
        then who was admitted last."""
        newest_first = reversed(self._running.values())
        return iter(sorted(newest_first, key=lambda sequence: sequence.priority))

    def _take_back(self, sequence: Sequence) -> None:
        """Preempt a sequence: it waits, and goes on where it was."""
        self.num_preemptions += 1
        slot = self._vacate(sequence)
        self._kv.park(slot)
        sequence.state = State.WAITING
        self._waiting.put_back(sequence)

    def _begin_anew(self, slots: Iterable[int]) -> None:
        """Take back slots whose sequences have lost all that was computed for them."""
        for slot in slots:
            sequence = self._running[slot]
            if not sequence.num_completion_tokens:
                sequence.num_cached_tokens = None  # it was not used
            self._take_back(sequence)

    def _awaits_prefix(self, sequence: Sequence) -> bool:
        """Is a running sequence about to compute much of what this one begins with, or a sibling
        all of it? Then it is worth waiting for, since it will be shared."""
        if not (self._kv.keeps_prefixes and sequence.shares_prefix):
            return False
        leaders = [
            running
            for running in self._running.values()
            if running.is_in_prefill
            and running.shares_prefix
            and running.owner == sequence.owner
            and (_are_siblings(running, sequence) or self._keeps_prompt_of(running))
        ]
        if not leaders:
            return False
        num_known = self._kv.match(sequence).num_tokens
        return any(
            _num_common(leader, sequence) - num_known >= _least_to_await(leader, sequence)
            for leader in leaders
        )

    def _keeps_prompt_of(self, leader: Sequence) -> bool:
        return leader.num_prompt_tokens >= self._kv.min_kept_tokens

    def _has_waiting_sibling(self, sequence: Sequence) -> bool:
        if not sequence.shares_prefix:
            return False
        return any(_are_siblings(waiting, sequence) for waiting in self._waiting)

    def _open(self, sequence: Sequence) -> list[Opening]:
        was_parked = sequence.parked is not None
        slot = self._kv.acquire(sequence)
        sequence.slot = slot
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed_tokens
        sequence.state = State.RUNNING
        self._running[slot] = sequence
        self._next_admitted = other_kind(sequence.kind)
        if self._drafter is not None:
            self._drafter.forget(slot)
        if was_parked:  # the slot has all it needs
            return []
        sampling = sequence.sampling if sequence.kind is BatchKind.GENERATION else None
        tokens = tuple(sequence.tokens)
        return [Opening(slot, tokens, sequence.num_prompt_tokens, sampling, sequence.mu)]

    def _vacate(self, sequence: Sequence) -> int:
        """The slot that a sequence had; its cells are still to be given back."""
        assert sequence.slot is not None
        slot, sequence.slot = sequence.slot, None
        del self._running[slot]
        return slot

    # ---- what came of a step ----

    def _append_all(
        self, sequence: Sequence, outputs: list[TokenOutput], num_guesses: int
    ) -> list[Effect]:
        """Take in the token after a chunk, or the right guesses in it and the token after those."""
        assert sequence.slot is not None
        slot, end = sequence.slot, sequence.num_computed_tokens + num_guesses
        if num_guesses:
            sequence.guessing.note(num_guesses, len(outputs) - 1)
        effects = self._append(sequence, outputs[0])
        for output in outputs[1:]:
            if sequence.state is State.ENDED:
                return effects
            sequence.num_computed_tokens += 1
            effects += self._append(sequence, output)
        if sequence.state is not State.ENDED:
            self._kv.truncate(slot, end)
        return effects

    def _append(self, sequence: Sequence, output: TokenOutput) -> list[Effect]:
        text, finish = sequence.append(output.token, self._vocabulary)
        sequence.mu = output.mu
        if not sequence.began and sequence.num_completion_tokens > 1:
            self._num_begun += 1
            sequence.began = self._num_begun
        sampled = Sampled(sequence, output, text)
        return [sampled] if finish is None else [sampled, self._end(sequence, finish)]

    # ---- ends ----

    def _of_request(self, rid: int) -> list[Sequence]:
        every = [*self._waiting, *self._running.values()]  # who waits keeps cells for nothing
        return [sequence for sequence in every if sequence.rid == rid]

    def _end_all(self, sequences: Iterable[Sequence], finish: Finish) -> list[Effect]:
        return [self._end(sequence, finish) for sequence in sequences]

    def _end(self, sequence: Sequence, finish: Finish, *, failure: str = "") -> Ended:
        assert sequence.state is not State.ENDED
        if sequence.slot is None:
            self._waiting.remove(sequence)
            self._kv.forget_parked(sequence)
        else:
            if finish is not Finish.ERROR:
                self._kv.keep(sequence.slot)
            has_sibling = self._has_waiting_sibling(sequence)
            self._kv.release(self._vacate(sequence), for_siblings=has_sibling)
            self._is_admission_paused = False
        sequence.state = State.ENDED
        return Ended(sequence, finish, sequence.text.finish(), failure)


def _num_common(leader: Sequence, sequence: Sequence) -> int:
    """How many tokens one sequence can share of another's prompt: never its own last one."""
    prompt = leader.tokens[: leader.num_prompt_tokens]
    return num_same(prompt, sequence.tokens[:-1], offset=0)


def _are_siblings(one: Sequence, other: Sequence) -> bool:
    return one.rid == other.rid and one.shares_prefix and other.shares_prefix


def _least_to_await(leader: Sequence, sequence: Sequence) -> int:
    return 1 if _are_siblings(leader, sequence) else MIN_PREFIX_TO_AWAIT
