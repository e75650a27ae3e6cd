"""Which sequence computes how many tokens in the next step.

Owns the waiting and running sequences and the slots. Knows no model, no clock and no pipe: events
come in (`add`, `abort`, `update`, `preempt`, `fail`), batches and effects go out.

One notion covers prefill, chunked prefill and decode: a running sequence has tokens that are known
but not computed, and each step computes some of them under a token budget, sequences with a single
one (decodes) first. When none is left, the step gives the next token.

Invariants (`check`): every slot is owned once; every sequence ends once; a sequence that was added
is waiting or running until it ends; nothing is admitted that its promised cells could not hold.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from openclawd.engine.batch import Batch, BatchKind, Chunk, Opening, Outputs, TokenOutput
from openclawd.engine.kvcache import KvCache
from openclawd.engine.prefixes import num_same
from openclawd.engine.sequence import Effect, Embedded, Ended, Finish, Sampled, Sequence, State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from openclawd.engine.prefixes import KeptPrefix
    from openclawd.engine.sequence import Vocabulary

MIN_PREFIX_TO_AWAIT: Final = 32
"""Fewer tokens are computed twice rather than waited for: at about 3 ms a token they take as long
as two or three steps of eight streams (SmolLM2 on two cores, docs/performance.md)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`batch_tokens` and `embedding_batch_tokens` bound one step of each kind. Models that need a
    whole prompt at once have `splits_prompts` False; then a step's bound is a prompt's, too.
    `num_prefix_tags` is how many prefixes can be kept; 0 for models that cannot share cells.

    Kept cells are not free: a step passes over every cell in use, its own or not, which costs the
    smallest models about 0.2 ms a token for each 1,000 cells (SmolLM2 on two cores, measured
    2026-11-23: from 94 to 75 tokens a second with 12,000 cells). So only prefixes of
    `min_kept_tokens` are kept, which take longer to compute than to pass over, and when nobody uses
    them they take `kept_share` of the cache at most.
    """

    num_slots: int
    kv_tokens: int
    batch_tokens: int
    embedding_batch_tokens: int
    splits_prompts: bool = True
    num_prefix_tags: int = 0
    min_kept_tokens: int = 256
    kept_share: float = 0.125

    def __post_init__(self) -> None:
        assert 0 < self.num_slots <= self.batch_tokens, "a step must hold one token of every slot"
        assert self.embedding_batch_tokens > 0


@dataclass(frozen=True, slots=True)
class NeverFits:
    """A sequence was refused, because even alone it would need more tokens than there can be."""

    num_tokens_needed: int
    num_tokens_allowed: int


class Scheduler:
    """See the module. Not thread-safe: it belongs to the engine thread."""

    def __init__(self, limits: Limits, vocabulary: Vocabulary) -> None:
        self._limits = limits
        self._vocabulary = vocabulary
        self._kv = KvCache(
            limits.num_slots,
            limits.kv_tokens,
            num_tags=limits.num_prefix_tags,
            min_kept_tokens=limits.min_kept_tokens,
            max_kept_cells=round(limits.kept_share * limits.kv_tokens),
        )
        self._waiting: dict[BatchKind, deque[Sequence]] = {kind: deque() for kind in BatchKind}
        self._running: dict[int, Sequence] = {}  # by slot, in the order of admission
        self._next_admitted = BatchKind.GENERATION
        self._next_computed = BatchKind.GENERATION
        self._is_admission_paused = False

    # ---- questions ----

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def num_used_tokens(self) -> int:
        """KV cells that hold a computed token now, of running sequences and kept prefixes."""
        return self._kv.num_used_cells

    def is_pinned(self, tokens: list[int]) -> bool:
        """Are the cells of these tokens there for good, and for everybody? They are once a sequence
        of domain None has ended that begins with them, unless the prefix tags did not suffice."""
        return self._kv.is_pinned(tokens)

    @property
    def is_idle(self) -> bool:
        return not self._running and self.num_waiting == 0

    # ---- prefixes that outlive the process ----

    def kept_prefixes(self) -> tuple[Batch, list[KeptPrefix]]:
        """Every kept prefix, in the order of `PrefixTree.kept`. Their cells are there once the
        batch is done, which computes nothing."""
        return Batch(BatchKind.GENERATION, [], cache_ops=self._kv.take_ops()), self._kv.kept()

    def adopt(self, domain: str | None, tokens: list[int], start: int) -> int | None:
        """Keep a prefix that another process computed: the caller puts the cells from `start` on
        under the tag that is returned. None if what comes before is not kept here just so far, or
        there is no room."""
        return self._kv.adopt(domain, tokens, start)

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
        self._waiting[sequence.kind].append(sequence)
        return None

    def abort(self, rid: int) -> list[Effect]:
        """End every sequence of a request. Nothing happens when there is none."""
        return self._end_all(self._of_request(rid), Finish.CANCELLED)

    def schedule(self) -> Batch | None:
        """The next step, or None when nothing can be computed."""
        opened = self._admit()
        if not self._running:
            return None
        chunks = self._chunks(self._next_computed)
        if not chunks:
            self._next_computed = _other(self._next_computed)
            chunks = self._chunks(self._next_computed)
        kind = self._next_computed
        self._next_computed = _other(kind)  # with work of both kinds, they take turns
        self._kv.make_room(sum(len(chunk.tokens) for chunk in chunks))
        return Batch(kind, chunks, opened, self._kv.take_ops())

    def update(self, batch: Batch, outputs: Outputs) -> list[Effect]:
        """Take in what a batch gave. No other event may come between `schedule` and this."""
        effects: list[Effect] = []
        for chunk in batch.chunks:
            sequence = self._running[chunk.slot]
            was_in_prefill = sequence.is_in_prefill
            sequence.num_computed_tokens += len(chunk.tokens)
            if not chunk.num_outputs:
                continue
            if was_in_prefill:
                self._kv.keep(chunk.slot)
            if batch.kind is BatchKind.EMBEDDING:
                effects.append(Embedded(sequence, outputs.vectors[chunk.slot]))
                effects.append(self._end(sequence, Finish.STOP))
            else:
                for output in outputs.tokens[chunk.slot]:
                    effects += self._append(sequence, output)
        return effects

    def preempt(self) -> list[Effect]:
        """A backend had no KV cell left for a batch: forget the prefixes that nobody uses, or else
        take back the slot of the sequence that was admitted last. It goes to the front of its queue
        and is computed again later.

        Nothing is admitted until a sequence ends, or the same batch would come again. A sequence
        that is alone cannot be helped by waiting; it ends.
        """
        if self._kv.forget_prefixes():
            return []
        sequence = next(reversed(self._running.values()))
        if len(self._running) == 1:
            return [self._end(sequence, Finish.ERROR)]
        self._release(sequence)
        sequence.state = State.WAITING
        sequence.num_computed_tokens = 0
        self._waiting[sequence.kind].appendleft(sequence)
        self._is_admission_paused = True
        return []

    def fail(self, batch: Batch) -> list[Effect]:
        """A batch could not be computed: its sequences end, the others stay."""
        return self._end_all([self._running[chunk.slot] for chunk in batch.chunks], Finish.ERROR)

    def check(self) -> None:
        """Raise `AssertionError` if an invariant does not hold."""
        self._kv.check()
        assert self._kv.held_slots() == frozenset(self._running)
        assert self._running or not self._is_admission_paused
        for slot, sequence in self._running.items():
            assert sequence.state is State.RUNNING
            assert sequence.slot == slot
            assert 0 < sequence.num_remaining_tokens <= len(sequence.tokens)
            assert len(sequence.tokens) <= sequence.num_cells_needed
        for kind, queue in self._waiting.items():
            assert all(sequence.kind is kind for sequence in queue)
            assert all(sequence.state is State.WAITING for sequence in queue)
            assert all(sequence.slot is None for sequence in queue)

    # ---- admission ----

    def _admit(self) -> list[Opening]:
        """Give free slots to waiting sequences, in their order, the two kinds taking turns.

        The head of a queue that must wait for cells keeps the rest waiting: small sequences must
        not pass a large one for ever.
        """
        opened: list[Opening] = []
        while not self._is_admission_paused and (sequence := self._next_waiting()):
            if not self._kv.can_acquire(sequence):
                break
            self._waiting[sequence.kind].remove(sequence)
            opened.append(self._open(sequence))
        return opened

    def _next_waiting(self) -> Sequence | None:
        """The first that need not wait for a prefix; of both kinds, the one whose turn it is."""
        for kind in (self._next_admitted, _other(self._next_admitted)):
            for sequence in self._waiting[kind]:
                if not self._awaits_prefix(sequence):
                    return sequence
        return None

    def _awaits_prefix(self, sequence: Sequence) -> bool:
        """Is a running sequence about to compute much of what this one begins with? Then it is
        worth waiting for, since it will be shared."""
        if not (self._kv.keeps_prefixes and sequence.shares_prefix):
            return False
        leaders = [
            running
            for running in self._running.values()
            if running.is_in_prefill
            and running.shares_prefix
            and running.domain == sequence.domain
            and running.num_prompt_tokens >= self._kv.min_kept_tokens
        ]
        if not leaders:
            return False
        common = max(_num_common(leader, sequence) for leader in leaders)
        return common - self._kv.match(sequence).num_tokens >= MIN_PREFIX_TO_AWAIT

    def _open(self, sequence: Sequence) -> Opening:
        slot = self._kv.acquire(sequence)
        sequence.slot = slot
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed_tokens
        sequence.state = State.RUNNING
        self._running[slot] = sequence
        self._next_admitted = _other(sequence.kind)
        sampling = sequence.sampling if sequence.kind is BatchKind.GENERATION else None
        tokens = tuple(sequence.tokens)
        return Opening(slot, tokens, sequence.num_prompt_tokens, sampling, sequence.mu)

    def _release(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        slot, sequence.slot = sequence.slot, None
        del self._running[slot]
        self._kv.release(slot)

    # ---- one step ----

    def _chunks(self, kind: BatchKind) -> list[Chunk]:
        budget = self._budget(kind)
        chunks = []
        running = [sequence for sequence in self._running.values() if sequence.kind is kind]
        for sequence in sorted(running, key=_is_prefill):  # stable: decodes first
            num_tokens = min(sequence.num_remaining_tokens, budget)
            is_whole = num_tokens == sequence.num_remaining_tokens
            if num_tokens == 0 or not (is_whole or self._limits.splits_prompts):
                break
            chunks.append(_chunk(sequence, num_tokens))
            budget -= num_tokens
        return chunks

    def _budget(self, kind: BatchKind) -> int:
        is_embedding = kind is BatchKind.EMBEDDING
        limits = self._limits
        return limits.embedding_batch_tokens if is_embedding else limits.batch_tokens

    def _append(self, sequence: Sequence, output: TokenOutput) -> list[Effect]:
        text, finish = sequence.append(output.token, self._vocabulary)
        sequence.mu = output.mu
        sampled = Sampled(sequence, output, text)
        return [sampled] if finish is None else [sampled, self._end(sequence, finish)]

    # ---- ends ----

    def _of_request(self, rid: int) -> list[Sequence]:
        every = [*self._running.values()]
        for queue in self._waiting.values():
            every += queue
        return [sequence for sequence in every if sequence.rid == rid]

    def _end_all(self, sequences: Iterable[Sequence], finish: Finish) -> list[Effect]:
        return [self._end(sequence, finish) for sequence in sequences]

    def _end(self, sequence: Sequence, finish: Finish) -> Ended:
        assert sequence.state is not State.ENDED
        if sequence.slot is None:
            self._waiting[sequence.kind].remove(sequence)
        else:
            if finish is not Finish.ERROR:
                self._kv.keep(sequence.slot)
            self._release(sequence)
            self._is_admission_paused = False
        sequence.state = State.ENDED
        return Ended(sequence, finish, sequence.text.finish())


def _num_common(leader: Sequence, sequence: Sequence) -> int:
    """How many tokens the prompts of two sequences begin with alike."""
    prompt = leader.tokens[: leader.num_prompt_tokens]
    return num_same(prompt, sequence.tokens, offset=0)


def _other(kind: BatchKind) -> BatchKind:
    return BatchKind.EMBEDDING if kind is BatchKind.GENERATION else BatchKind.GENERATION


def _is_prefill(sequence: Sequence) -> bool:
    return sequence.num_remaining_tokens > 1


def _chunk(sequence: Sequence, num_tokens: int) -> Chunk:
    assert sequence.slot is not None
    start = sequence.num_computed_tokens
    end = start + num_tokens
    return Chunk(
        slot=sequence.slot,
        position=start,
        tokens=sequence.tokens[start:end],
        num_outputs=int(end == len(sequence.tokens)),
    )
