"""Which of the running sequences compute how many tokens in the next step.

Owns the order within a step (higher priorities first, then decodes), its budgets, the turns that
groups of sequences take, what is guessed, and what is computed aside. Who runs is the scheduler's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from openclawd.engine.batch import BatchKind, Chunk
from openclawd.engine.pace import MAX_STRETCH, SHARED_STRETCH, Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from openclawd.engine.batch import Batch
    from openclawd.engine.limits import Limits
    from openclawd.engine.sequence import Group, Sequence
    from openclawd.engine.speculation import Drafter

MAX_BURST_BATCHES: Final = 4
"""What a burst may have left for its first streams to wait for it. Between two batches each has a
step; the last one is read before the next step. Longer prompts are read at the streams' pace."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A step: parts of the sequences of one group, or of the one that is computed `aside`."""

    group: Group
    chunks: list[Chunk]
    aside: Sequence | None = None

    @property
    def num_tokens(self) -> int:
        return sum(len(chunk.tokens) for chunk in self.chunks)


@dataclass(slots=True)
class _Ready:
    """Whom a step may be for, each kind in the order of admission: `decodes` compute one token
    each, to get the next, and `prompts` are all others. Told apart once a step, for it is asked at
    every turn of what follows."""

    decodes: list[Sequence]
    prompts: list[Sequence]

    @classmethod
    def of(cls, running: Iterable[Sequence]) -> _Ready:
        ready = cls([], [])
        for each in running:
            (ready.decodes if each.is_decoding else ready.prompts).append(each)
        return ready

    @property
    def everybody(self) -> list[Sequence]:
        return self.decodes + self.prompts

    @property
    def paced_priority(self) -> int | None:
        """The highest priority of those whose pace a prefill must not disturb."""
        return max((each.priority for each in self.decodes), default=None)

    def only(self, wanted: Callable[[Sequence], bool]) -> _Ready:
        return _Ready([*filter(wanted, self.decodes)], [*filter(wanted, self.prompts)])


@dataclass(slots=True)
class _Budget:
    """What is left of a step: `num_tokens` for everybody, and of those `num_paced_tokens` for
    prompts that must keep to the pace of running streams: all whose priority is not above
    `paced_priority`."""

    num_tokens: int
    num_paced_tokens: int
    paced_priority: int | None

    def left_for(self, prompt: Sequence) -> int:
        is_paced = self.paced_priority is not None and prompt.priority <= self.paced_priority
        paced = self.num_paced_tokens if is_paced else self.num_tokens
        return max(0, min(self.num_tokens, paced))


class Steps:
    """See the module. `drafter` guesses, if there is one; durations come in."""

    def __init__(self, limits: Limits, drafter: Drafter | None) -> None:
        self._limits = limits
        self._drafter = drafter
        self._pace = Pace()
        self._turns: dict[Group, int] = {}  # when each last had one, in steps
        self._num_steps = 0
        self._had_prompts = False

    def plan(self, running: Collection[Sequence], aside: Sequence | None) -> Plan | None:
        """The next step, beside what is computed `aside`; None if there is nobody to compute."""
        ready = _Ready.of(running)
        if aside is None and (prompt := self._next_aside(ready)):
            return Plan(prompt.group, [self._part_aside(prompt)], prompt)
        if aside is not None:
            ready = self._beside(aside, ready)
        if not (ready.decodes or ready.prompts):
            return None
        group = self._next_group(ready)
        stretch = MAX_STRETCH if aside is None else SHARED_STRETCH
        return Plan(group, self._chunks(group, ready, stretch))

    def max_aside_s(self, running: Collection[Sequence], aside: Sequence) -> float:
        """See `Scheduler.max_aside_s`."""
        others = self._beside(aside, _Ready.of(running))
        if any(each.priority > aside.priority for each in others.prompts):
            return 0.0
        stretch = SHARED_STRETCH if others.prompts else MAX_STRETCH
        return self._pace.max_aside_s(len(others.decodes), stretch=stretch)

    def note_duration(self, batch: Batch, duration_s: float, *, in_pause: bool) -> None:
        """A step took this long; `in_pause` of what is computed aside."""
        lengths = [
            len(chunk.tokens) for chunk in batch.chunks if chunk.num_outputs == len(chunk.tokens)
        ]
        num_decode_tokens = sum(lengths)
        num_prefill_tokens = batch.num_tokens - num_decode_tokens
        self._pace.note(num_decode_tokens, num_prefill_tokens, duration_s, in_pause=in_pause)

    # ---- aside ----

    def _next_aside(self, ready: _Ready) -> Sequence | None:
        """Whose prompt is read aside next, if it would disturb running streams."""
        if not ready.prompts:
            return None
        paced_priority = ready.paced_priority
        if paced_priority is None or any(each.priority > paced_priority for each in ready.prompts):
            return None  # nobody is disturbed, or may not mind
        return max(filter(self._is_for_aside, ready.prompts), key=_priority_of, default=None)

    def _part_aside(self, sequence: Sequence) -> Chunk:
        """As much as can be, but no rest that would be too small for the next."""
        most, num_tokens = self._limits.aside_tokens, sequence.num_remaining_tokens
        assert most is not None
        if num_tokens > most:
            rest = num_tokens - most
            num_tokens = most if rest >= most // 2 else num_tokens // 2
        return _chunk(sequence, num_tokens, [])

    def _is_for_aside(self, sequence: Sequence) -> bool:
        """Is much of it left, also beside what was there before and has to be copied there? That
        takes a hundredth of the time of computing as much, and nobody's step can be computed
        meanwhile (SmolLM2: 65 ms for 2,000 tokens)."""
        most = self._limits.aside_tokens
        if most is None or sequence.kind is BatchKind.EMBEDDING:
            return False
        num_copied = sequence.num_cached_tokens or 0
        is_worth_copying = len(sequence.tokens) - num_copied >= num_copied // 8
        return sequence.num_remaining_tokens >= most // 2 and is_worth_copying

    def _beside(self, aside: Sequence, ready: _Ready) -> _Ready:
        """Whom a step may be for meanwhile: not who is being computed aside, nor who will be
        next."""
        return ready.only(
            lambda each: (
                each is not aside
                and (each.priority > aside.priority or not self._is_for_aside(each))
            )
        )

    # ---- together ----

    def _next_group(self, ready: _Ready) -> Group:
        """Those that can be computed together take turns: the one goes first that has waited
        longest."""
        groups = {sequence.group: None for sequence in ready.everybody}
        group = min(groups, key=lambda group: self._turns.get(group, 0))
        self._num_steps += 1
        self._turns[group] = self._num_steps
        return group

    def _chunks(self, group: Group, ready: _Ready, stretch: float) -> list[Chunk]:
        kind, _ = group
        left_of_burst = self._left_of_burst(ready)
        num_paced = self._max_paced_tokens(ready, stretch) if left_of_burst is None else None
        num_tokens = self._limits.budget(kind)
        budget = _Budget(num_tokens, num_paced or num_tokens, ready.paced_priority)
        if left_of_burst is not None and left_of_burst <= num_tokens:
            self._had_prompts = False  # it is not the turn of the decodes yet
        step = self._of_step(ready.only(lambda each: each.group == group), budget)
        guesses = self._guess(step, budget.num_tokens)
        chunks = []
        # Higher priorities first, then decodes, and equals in the order of admission.
        for sequence in sorted(step.everybody, key=_priority_of, reverse=True):
            num_remaining, is_prompt = sequence.num_remaining_tokens, not sequence.is_decoding
            allowed = budget.left_for(sequence) if is_prompt else budget.num_tokens
            num_tokens = min(num_remaining, allowed)
            if not self._limits.splits_prompts and num_tokens < num_remaining:
                num_tokens = 0
            if num_tokens > 0:
                chunk = _chunk(sequence, num_tokens, guesses.get(sequence, []))
                budget.num_tokens -= len(chunk.tokens)
                budget.num_paced_tokens -= len(chunk.tokens) if is_prompt else 0
                chunks.append(chunk)
        return chunks

    def _of_step(self, ready: _Ready, budget: _Budget) -> _Ready:
        """Those that the next step is for: all of its group, or only its decodes or its prompts if
        the two together would be too many tokens."""
        tile = self._limits.tile_tokens
        if tile is None or not (ready.decodes and ready.prompts):
            self._had_prompts = bool(ready.prompts)
            return ready
        allowed = max(budget.left_for(sequence) for sequence in ready.prompts)
        to_come = sum(sequence.num_remaining_tokens for sequence in ready.prompts)
        if len(ready.decodes) + min(allowed, to_come) < tile:
            self._had_prompts = True
            return ready
        self._had_prompts = not self._had_prompts
        if not self._had_prompts:
            return _Ready(ready.decodes, [])
        budget.num_paced_tokens = max(1, round(budget.num_paced_tokens / tile)) * tile
        return _Ready([], ready.prompts)

    def _left_of_burst(self, ready: _Ready) -> int | None:
        """How many tokens are left to read of prompts that were all here before any running stream
        had its second token; None if not all were, if some are less urgent, or if it is too much to
        wait for. These streams have no pace to lose yet, and all of the burst end sooner if it is
        read first: the steps until then would hold some of them only, and take nearly as long as
        with all."""
        prompts, decodes = ready.prompts, ready.decodes
        if not (prompts and decodes):
            return None
        paces = [each.began for each in decodes if each.began]
        if paces and max(each.arrived for each in prompts) >= min(paces):
            return None
        if min(map(_priority_of, prompts)) < max(map(_priority_of, decodes)):
            return None
        num_tokens = sum(each.num_remaining_tokens for each in prompts)
        return num_tokens if num_tokens <= MAX_BURST_BATCHES * self._limits.batch_tokens else None

    def _max_paced_tokens(self, ready: _Ready, stretch: float) -> int:
        """Prompt tokens that may be computed in a step while sequences are decoding."""
        if not self._limits.splits_prompts:
            return self._limits.embedding_batch_tokens
        num_prompts = sum(each.kind is BatchKind.GENERATION for each in ready.prompts)
        num_decodes = len(ready.decodes)
        allowed = self._pace.max_prefill_tokens(num_decodes, num_prompts, stretch=stretch)
        return self._limits.batch_tokens if allowed is None else allowed

    def _guess(self, step: _Ready, budget: int) -> dict[Sequence, list[int]]:
        """What may come after the next token of each decoding sequence, as far as a step has room
        for checking it and checking it pays."""
        decoding = step.decodes
        if not decoding or self._drafter is None or not self._pace.a_guess_pays(len(decoding)):
            return {}
        left = budget - len(decoding) - len(step.prompts)
        most = min(self._limits.max_guesses, left // len(decoding))
        wanted = {}
        for sequence in decoding:
            assert sequence.slot is not None
            to_come = sequence.max_tokens - sequence.num_completion_tokens - 1
            length = min(sequence.guessing.next_length(), most, to_come)
            if length > 0:
                wanted[sequence.slot] = sequence.tokens, length
        guesses = self._drafter.propose(wanted) if wanted else {}
        return {each: guesses[each.slot] for each in decoding if each.slot in guesses}


def _priority_of(sequence: Sequence) -> int:
    return sequence.priority


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
