"""Which of the running sequences compute how many tokens in the next step.

Owns the order within a step (higher priorities first, then decodes), its budgets, the turns that
groups of sequences take, what is guessed, and what is computed aside. Who runs is the scheduler's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from openclawd.engine.batch import BatchKind, Chunk
from openclawd.engine.pace import ASIDE_STRETCH, MAX_STRETCH, Pace

if TYPE_CHECKING:
    from collections.abc import Collection

    from openclawd.engine.batch import Batch
    from openclawd.engine.limits import Limits
    from openclawd.engine.sequence import Group, Sequence
    from openclawd.engine.speculation import Drafter


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
        if aside is None and (prompt := self._next_aside(running)):
            return Plan(prompt.group, [self._part_aside(prompt)], prompt)
        computable = self._computable(running, aside)
        if not computable:
            return None
        group = self._next_group(computable)
        stretch = MAX_STRETCH if aside is None else ASIDE_STRETCH
        return Plan(group, self._chunks(group, computable, stretch))

    def max_aside_s(self, running: Collection[Sequence], aside: Sequence) -> float:
        """See `Scheduler.max_aside_s`."""
        others = self._computable(running, aside)
        if any(each.priority > aside.priority and not each.is_decoding for each in others):
            return 0.0
        return self._pace.max_aside_s(sum(each.is_decoding for each in others))

    def note_duration(self, batch: Batch, duration_s: float) -> None:
        """A step took this long."""
        lengths = [
            len(chunk.tokens) for chunk in batch.chunks if chunk.num_outputs == len(chunk.tokens)
        ]
        num_decode_tokens = sum(lengths)
        self._pace.note(num_decode_tokens, batch.num_tokens - num_decode_tokens, duration_s)

    # ---- aside ----

    def _next_aside(self, running: Collection[Sequence]) -> Sequence | None:
        """Whose prompt is read aside next, if it would disturb running streams."""
        paced_priority = _paced_priority(running)
        prompts = [sequence for sequence in running if not sequence.is_decoding]
        if paced_priority is None or any(each.priority > paced_priority for each in prompts):
            return None  # nobody is disturbed, or may not mind
        return min(filter(self._is_for_aside, prompts), key=_urgency, default=None)

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

    def _computable(self, running: Collection[Sequence], aside: Sequence | None) -> list[Sequence]:
        """Whom the next step may be for: not who is being computed aside, nor who will be next."""
        if aside is None:
            return [*running]
        return [
            sequence
            for sequence in running
            if sequence is not aside
            and (sequence.priority > aside.priority or not self._is_for_aside(sequence))
        ]

    # ---- together ----

    def _next_group(self, computable: list[Sequence]) -> Group:
        """Those that can be computed together take turns: the one goes first that has waited
        longest."""
        groups = {sequence.group: None for sequence in computable}
        group = min(groups, key=lambda group: self._turns.get(group, 0))
        self._num_steps += 1
        self._turns[group] = self._num_steps
        return group

    def _chunks(self, group: Group, computable: list[Sequence], stretch: float) -> list[Chunk]:
        kind, _ = group
        is_burst = self._is_rest_of_burst(computable)
        num_paced = None if is_burst else self._max_paced_tokens(computable, stretch)
        num_tokens = self._limits.budget(kind)
        budget = _Budget(num_tokens, num_paced or num_tokens, _paced_priority(computable))
        self._had_prompts &= not is_burst
        running = self._of_step([each for each in computable if each.group == group], budget)
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

    def _of_step(self, running: list[Sequence], budget: _Budget) -> list[Sequence]:
        """Those that the next step is for: all of its group, or only its decodes or its prompts if
        the two together would be too many tokens."""
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

    def _is_rest_of_burst(self, computable: list[Sequence]) -> bool:
        """Is what is left of the prompts no more than one batch, and were they all here before any
        running stream had its first token? Then these have no pace to lose yet, and all of the
        burst end sooner if it is read first: the steps until then would hold some of them only,
        and take nearly as long as with all."""
        prompts = [each for each in computable if not each.is_decoding]
        firsts = [each.began for each in computable if each.is_decoding]
        if not (prompts and firsts) or max(each.arrived for each in prompts) >= min(firsts):
            return False
        return sum(each.num_remaining_tokens for each in prompts) <= self._limits.batch_tokens

    def _max_paced_tokens(self, computable: list[Sequence], stretch: float) -> int:
        """Prompt tokens that may be computed in a step while sequences are decoding."""
        if not self._limits.splits_prompts:
            return self._limits.embedding_batch_tokens
        streams = [each for each in computable if each.kind is BatchKind.GENERATION]
        num_decoding = sum(each.is_decoding for each in streams)
        num_prompts = len(streams) - num_decoding
        allowed = self._pace.max_prefill_tokens(num_decoding, num_prompts, stretch=stretch)
        return self._limits.batch_tokens if allowed is None else allowed

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
        return {each: guesses[each.slot] for each in decoding if each.slot in guesses}


def _paced_priority(running: Collection[Sequence]) -> int | None:
    """The highest priority of those whose pace a prefill must not disturb."""
    decoding = [each.priority for each in running if each.is_decoding]
    return max(decoding, default=None)


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
