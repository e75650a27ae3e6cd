"""Which sequence computes how many tokens in the next step.

Owns the waiting and running sequences and the slots. Knows no model, no clock and no pipe: events
come in (`add`, `abort`, `update`, `preempt`, `fail`), batches and effects go out.

One notion covers prefill, chunked prefill, decode and speculation: a running sequence has tokens
that are known but not computed, and each step computes some of them under a token budget, higher
priorities and sequences with a single one (decodes) first. When none is left, the step gives the
next token, and of guessed tokens behind it those that are right.

Invariants (`check`): every slot is owned once; every sequence ends once; a sequence that was added
is waiting or running until it ends; nothing is admitted that its promised cells could not hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from openclawd.engine.batch import Batch, BatchKind, Chunk, Opening, Outputs, TokenOutput
from openclawd.engine.kvcache import KvCache
from openclawd.engine.pace import Pace
from openclawd.engine.prefixes import num_same
from openclawd.engine.sequence import Effect, Embedded, Ended, Finish, Sampled, Sequence, State
from openclawd.engine.waiting import WaitingLine, other_kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from openclawd.engine.prefixes import KeptPrefix, Owner
    from openclawd.engine.sequence import Group, Vocabulary
    from openclawd.engine.speculation import Drafter

MIN_PREFIX_TO_AWAIT: Final = 32
"""Fewer tokens are computed twice rather than waited for: at about 3 ms a token they take as long
as two or three steps of eight streams (SmolLM2 on two cores, docs/performance.md)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`batch_tokens` and `embedding_batch_tokens` bound one step of each kind. Models that need a
    whole prompt at once have `splits_prompts` False; then a step's bound is a prompt's, too.
    `num_prefix_tags` is how many prefixes can be kept; 0 for models that cannot share cells.
    Batches of `tile_tokens` or more, if there is such a number, hold decodes or parts of prompts
    and not both, in turns; the parts of prompts fill whole tiles as far as they can. Beside running
    streams, prompts are computed aside in parts of up to `aside_tokens`, if there is such a number
    and half as many are left.

    Kept cells are not free: a step passes over every cell in use, its own or not, which costs the
    smallest models about 0.2 ms a token for each 1,000 cells (SmolLM2 on two cores, measured
    2026-11-23: from 94 to 75 tokens a second with 12,000 cells). So only prefixes of
    `min_kept_tokens` are kept, which take longer to compute than to pass over, and when nobody uses
    them they take `kept_share` of the cache at most.

    Sequences that were preempted take as much of the host's memory as `parked_share` of the cache
    at most. One that waits for cells may be passed `max_skips` times by others that need fewer. At
    most `max_guesses` tokens are guessed ahead for a sequence; none where those that were wrong
    cannot be dropped again (`can_drop_last`).
    """

    num_slots: int
    kv_tokens: int
    batch_tokens: int
    embedding_batch_tokens: int
    splits_prompts: bool = True
    num_prefix_tags: int = 0
    min_kept_tokens: int = 256
    kept_share: float = 0.25
    parked_share: float = 0.5
    max_skips: int = 16
    max_guesses: int = 0
    can_drop_last: bool = False
    tile_tokens: int | None = None
    aside_tokens: int | None = None

    def __post_init__(self) -> None:
        assert 0 < self.num_slots <= self.batch_tokens, "a step must hold one token of every slot"
        assert self.embedding_batch_tokens > 0
        assert self.aside_tokens is None or self.aside_tokens // 2 > 1, "decodes are not aside"


@dataclass(frozen=True, slots=True)
class NeverFits:
    """A sequence was refused, because even alone it would need more tokens than there can be."""

    num_tokens_needed: int
    num_tokens_allowed: int


@dataclass(slots=True)
class _Budget:
    """What is left of a step: `num_tokens` for everybody, and of those `num_paced_tokens` for
    prompts that must keep to the pace of running streams: all whose priority is not above
    `paced_priority`."""

    num_tokens: int
    num_paced_tokens: int
    paced_priority: int | None

    def left_for(self, sequence: Sequence) -> int:
        paced = self.num_paced_tokens if self._is_paced(sequence) else self.num_tokens
        return max(0, min(self.num_tokens, paced))

    def take(self, sequence: Sequence, num_tokens: int) -> None:
        self.num_tokens -= num_tokens
        if not sequence.is_decoding:
            self.num_paced_tokens -= num_tokens

    def _is_paced(self, sequence: Sequence) -> bool:
        is_bound = self.paced_priority is not None and sequence.priority <= self.paced_priority
        return is_bound and not sequence.is_decoding


class Scheduler:
    """See the module. Not thread-safe: it belongs to the engine thread."""

    def __init__(
        self, limits: Limits, vocabulary: Vocabulary, drafter: Drafter | None = None
    ) -> None:
        self._limits = limits
        self._vocabulary = vocabulary
        self._drafter = drafter if limits.can_drop_last else None
        self._pace = Pace()
        self._kv = KvCache(
            limits.num_slots,
            limits.kv_tokens,
            num_tags=limits.num_prefix_tags,
            min_kept_tokens=limits.min_kept_tokens,
            max_kept_cells=round(limits.kept_share * limits.kv_tokens),
            max_parked_cells=round(limits.parked_share * limits.kv_tokens),
        )
        self._waiting = WaitingLine()
        self._running: dict[int, Sequence] = {}  # by slot, in the order of admission
        self._next_admitted = BatchKind.GENERATION
        self._turns: dict[Group, int] = {}  # when each last had one, in steps
        self._num_steps = 0
        self._had_prompts = False
        self._is_admission_paused = False
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
        priority = self._aside.priority
        others = self._computable()
        if any(each.priority > priority and not each.is_decoding for each in others):
            return 0.0
        return self._pace.max_aside_s(sum(each.is_decoding for each in others))

    # ---- prefixes that outlive the process ----

    def kept_prefixes(self) -> tuple[Batch, list[KeptPrefix]]:
        """Every kept prefix, in the order of `PrefixTree.kept`. Their cells are there once the
        batch is done, which computes nothing."""
        return Batch(BatchKind.GENERATION, [], cache_ops=self._kv.take_ops()), self._kv.kept()

    def adopt(self, owner: Owner, tokens: list[int], start: int) -> int | None:
        """Keep a prefix that another process computed: the caller puts the cells from `start` on
        under the tag that is returned. None if what comes before is not kept here just so far, or
        there is no room."""
        return self._kv.adopt(owner, tokens, start)

    def disown(self, tag: int) -> None:
        """What was adopted last did not come, after all."""
        self._kv.disown(tag)

    # ---- events ----

    def add(self, sequence: Sequence) -> NeverFits | None:
        """Queue a sequence, or refuse it for good."""
        allowed = self._kv.num_cells_for(sequence)
        if not self._limits.splits_prompts:
            allowed = min(allowed, self._budget(sequence.kind))
        if sequence.num_cells_needed > allowed:
            return NeverFits(sequence.num_cells_needed, allowed)
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

    def schedule(self) -> Batch | None:
        """The next step, or None when nothing can be computed. One that is aside is followed by
        those of the others until `update`, `stop_aside`, `preempt` or `fail` takes it back."""
        opened = self._admit()
        aside = self._next_aside()
        group = aside.group if aside else self._next_group()
        if group is None:
            return None
        chunks = [self._part_aside(aside)] if aside else self._chunks(group)
        num_tokens = sum(len(chunk.tokens) for chunk in chunks)
        self._kv.make_room(num_tokens + self._num_aside_tokens)
        if aside:
            self._aside, self._num_aside_tokens = aside, num_tokens
        kind, adapter = group
        ops = self._kv.take_ops()
        return Batch(kind, chunks, opened, ops, adapter=adapter, is_aside=aside is not None)

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
        if duration_s is not None:
            self._note_duration(batch, duration_s)
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

    def preempt(self, lost: Iterable[int] = ()) -> list[Effect]:
        """A backend had no KV cell left for a batch: forget the prefixes that nobody uses, or else
        take back the slot of the sequence that was admitted last, of those with the lowest
        priority. It goes on later. The slots in `lost` should have been resumed and could not be:
        their sequences are computed again.

        Nothing is admitted until a sequence ends, or the same batch would come again. A sequence
        that is alone cannot be helped by waiting; it ends.
        """
        for slot in lost:
            self._running[slot].num_computed_tokens = 0
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
        others. End the one that it must have come from: the only one there is, or the only one
        that nothing sound has come from. No other can be told."""
        running = list(self._running.values())
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
        slot = self._vacate(sequence)
        self._kv.park(slot)
        sequence.state = State.WAITING
        self._waiting.put_back(sequence)

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

    # ---- one step ----

    def _computable(self) -> list[Sequence]:
        """Whom the next step may be for: not who is being computed aside, nor who will be next."""
        aside, running = self._aside, self._running.values()
        if aside is None:
            return [*running]
        return [
            sequence
            for sequence in running
            if sequence is not aside
            and (sequence.priority > aside.priority or not self._is_for_aside(sequence))
        ]

    def _is_for_aside(self, sequence: Sequence) -> bool:
        most = self._limits.aside_tokens
        if most is None or sequence.kind is BatchKind.EMBEDDING:
            return False
        return sequence.num_remaining_tokens >= most // 2

    def _next_aside(self) -> Sequence | None:
        """Whose prompt is read aside next, if it would disturb running streams."""
        paced_priority = self._paced_priority()
        if self._aside is not None or paced_priority is None:
            return None
        prompts = [
            sequence
            for sequence in self._running.values()
            if sequence.priority <= paced_priority and self._is_for_aside(sequence)
        ]
        return min(prompts, key=_urgency, default=None)

    def _part_aside(self, sequence: Sequence) -> Chunk:
        """As much as can be, but no rest that would be too small for the next."""
        most, num_tokens = self._limits.aside_tokens, sequence.num_remaining_tokens
        assert most is not None
        if num_tokens > most:
            rest = num_tokens - most
            num_tokens = most if rest >= most // 2 else num_tokens // 2
        return _chunk(sequence, num_tokens, [])

    def _next_group(self) -> Group | None:
        """Those that can be computed together take turns: the one goes first that has waited
        longest."""
        groups = {sequence.group: None for sequence in self._computable()}
        if not groups:
            return None
        group = min(groups, key=lambda group: self._turns.get(group, 0))
        self._num_steps += 1
        self._turns[group] = self._num_steps
        return group

    def _chunks(self, group: Group) -> list[Chunk]:
        kind, _ = group
        budget = _Budget(self._budget(kind), self._max_paced_tokens(), self._paced_priority())
        running = self._of_step(group, budget)
        guesses = self._guess(running, budget.num_tokens)
        chunks = []
        for sequence in sorted(running, key=_urgency):  # stable: equals in the order of admission
            allowed = budget.left_for(sequence)
            num_tokens = min(sequence.num_remaining_tokens, allowed)
            is_whole = num_tokens == sequence.num_remaining_tokens
            if not self._limits.splits_prompts and not is_whole:
                num_tokens = 0
            if num_tokens:
                chunk = _chunk(sequence, num_tokens, guesses.get(sequence, []))
                budget.take(sequence, len(chunk.tokens))
                chunks.append(chunk)
        return chunks

    def _of_step(self, group: Group, budget: _Budget) -> list[Sequence]:
        """Those that the next step is for: all of a group, or only its decodes or its prompts if
        the two together would be too many tokens."""
        running = [sequence for sequence in self._computable() if sequence.group == group]
        decodes = [sequence for sequence in running if sequence.is_decoding]
        prompts = [sequence for sequence in running if not sequence.is_decoding]
        tile = self._limits.tile_tokens
        if tile is None or not (decodes and prompts):
            self._had_prompts = bool(prompts)
            return running
        allowed = max(budget.left_for(sequence) for sequence in prompts)
        to_come = sum(sequence.num_remaining_tokens for sequence in prompts)
        if len(decodes) + min(allowed, to_come) < tile:
            self._had_prompts = True
            return running
        self._had_prompts = not self._had_prompts
        if not self._had_prompts:
            return decodes
        budget.num_paced_tokens = max(1, round(budget.num_paced_tokens / tile)) * tile
        return prompts

    def _paced_priority(self) -> int | None:
        """The highest priority of those whose pace a prefill must not disturb."""
        decoding = [each.priority for each in self._running.values() if each.is_decoding]
        return max(decoding, default=None)

    def _max_paced_tokens(self) -> int:
        """Prompt tokens that may be computed in a step while sequences are decoding."""
        if not self._limits.splits_prompts:
            return self._limits.embedding_batch_tokens
        streams = [each for each in self._computable() if each.kind is BatchKind.GENERATION]
        num_decoding = sum(each.is_decoding for each in streams)
        num_prompts = len(streams) - num_decoding
        allowed = self._pace.max_prefill_tokens(num_decoding, num_prompts)
        return self._limits.batch_tokens if allowed is None else allowed

    def _note_duration(self, batch: Batch, duration_s: float) -> None:
        lengths = [
            len(chunk.tokens) for chunk in batch.chunks if chunk.num_outputs == len(chunk.tokens)
        ]
        num_decode_tokens = sum(lengths)
        self._pace.note(num_decode_tokens, batch.num_tokens - num_decode_tokens, duration_s)

    def _guess(self, running: list[Sequence], budget: int) -> dict[Sequence, list[int]]:
        """What may come after the next token of each decoding sequence, as far as a step has room
        for checking it and checking it pays."""
        decoding = [sequence for sequence in running if sequence.is_decoding]
        if not decoding or self._drafter is None or not self._pace.a_guess_pays(len(decoding)):
            return {}
        most = min(self._limits.max_guesses, (budget - len(running)) // len(decoding))
        wanted = {}
        for sequence in decoding:
            assert sequence.slot is not None
            to_come = sequence.max_tokens - sequence.num_completion_tokens - 1
            length = min(sequence.guessing.next_length(), most, to_come)
            if length > 0:
                wanted[sequence.slot] = sequence.tokens, length
        guesses = self._drafter.propose(wanted) if wanted else {}
        return {self._running[slot]: tokens for slot, tokens in guesses.items()}

    def _budget(self, kind: BatchKind) -> int:
        is_embedding = kind is BatchKind.EMBEDDING
        limits = self._limits
        return limits.embedding_batch_tokens if is_embedding else limits.batch_tokens

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


def _urgency(sequence: Sequence) -> tuple[int, bool]:
    """Higher priorities first, then decodes."""
    return -sequence.priority, not sequence.is_decoding


def _chunk(sequence: Sequence, num_tokens: int, guesses: list[int]) -> Chunk:
    assert sequence.slot is not None
    start = sequence.num_computed_tokens
    end = start + num_tokens
    is_whole = end == len(sequence.tokens)
    return Chunk(
        slot=sequence.slot,
        position=start,
        tokens=sequence.tokens[start:end] + guesses,
        num_outputs=1 + len(guesses) if is_whole else 0,
    )
