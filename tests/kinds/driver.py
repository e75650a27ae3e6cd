"""A scheduler and a backend, driven step by step: the engine without worker, pipe and clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openclawd.backends.base import DecodeFailed, NoFreeCells
from openclawd.engine.limits import Limits
from openclawd.engine.sampling import SamplingParams
from openclawd.engine.scheduler import Scheduler
from openclawd.engine.sequence import Embedded, Ended, Finish, Sampled, Sequence

if TYPE_CHECKING:
    from collections.abc import Iterable

    from openclawd.backends.base import Backend
    from openclawd.engine.sequence import Effect
    from openclawd.engine.speculation import Drafter

GREEDY = SamplingParams(temperature=0)


@dataclass(frozen=True)
class Ask:
    """A request: these tokens, how the answer is chosen, and with which adapter."""

    tokens: tuple[int, ...]
    sampling: SamplingParams = GREEDY
    adapter: str = ""


class Engine:
    """Takes over a backend that no other engine uses any more. `limits` replace the usual ones."""

    def __init__(self, backend: Backend, drafter: Drafter | None = None, **limits: Any) -> None:
        self.backend = backend
        self.scheduler = Scheduler(_limits(backend, limits), backend, drafter)
        self.sequences: list[Sequence] = []
        self.vectors: dict[int, bytes] = {}
        self.siblings: dict[tuple[int, int], Sequence] = {}
        self.finishes: dict[int, Finish] = {}
        for owner in range(backend.info.parallel + backend.limits.num_prefix_tags):
            backend.copy_cells_in(owner, b"")  # drops what another engine left there

    # ---- requests ----

    def ask(self, ask: Ask, num_tokens: int, *, so_far: Iterable[int] = (), **fields: Any) -> int:
        """Add a request, which is known by the number it gets. `so_far` is what another engine had
        answered already."""
        rid = len(self.sequences)
        fields |= {"sampling": ask.sampling, "adapter": ask.adapter}
        sequence = Sequence(rid, 0, list(ask.tokens), num_tokens, **fields)
        self.sequences.append(sequence)
        if ended := sequence.resume(so_far, self.backend) if so_far else None:
            self._take([ended])
        else:
            assert self.scheduler.add(sequence) is None
        return rid

    def add_choice(self, rid: int, index: int) -> None:
        """One more answer to the prompt of a request, chosen alike."""
        first = self.sequences[rid]
        prompt = first.tokens[: first.num_prompt_tokens]
        sequence = Sequence(
            rid,
            index,
            prompt,
            first.max_tokens,
            sampling=first.sampling,
            adapter=first.adapter,
        )
        self.siblings[rid, index] = sequence
        assert self.scheduler.add(sequence) is None

    def embed(self, ask: Ask) -> int:
        return self.ask(ask, 0)

    def abort(self, rid: int) -> None:
        self._take(self.scheduler.abort(rid))

    def answer(self, rid: int, index: int = 0) -> list[int]:
        sequence = self.siblings[rid, index] if index else self.sequences[rid]
        return sequence.tokens[sequence.num_prompt_tokens :]

    def has_ended(self, rid: int) -> bool:
        return rid in self.finishes

    # ---- steps ----

    def step(self) -> bool:
        """Compute one batch. False when there was nothing to do."""
        batch = self.scheduler.schedule()
        if batch is None:
            return False
        result = self.backend.forward(batch)
        assert not isinstance(result, DecodeFailed), result
        if isinstance(result, NoFreeCells):
            self.preempt(result.lost)
        else:
            self._take(self.scheduler.update(batch, result))
        self.scheduler.check()
        return True

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def run(self) -> None:
        """Until every request has ended."""
        while self.step():
            pass
        assert self.scheduler.is_idle
        assert len(self.finishes) == len(self.sequences)

    def preempt(self, lost: Iterable[int] = ()) -> None:
        """As if the backend had had no cell left."""
        self._take(self.scheduler.preempt(lost))
        self.scheduler.check()

    def _take(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            rid = effect.sequence.rid
            if effect.sequence.index:
                continue
            assert rid not in self.finishes, "something came after the end"
            match effect:
                case Embedded(vector=vector):
                    self.vectors[rid] = vector
                case Ended(finish=finish):
                    self.finishes[rid] = finish
                case Sampled():
                    pass


def _limits(backend: Backend, values: dict[str, Any]) -> Limits:
    usual = {
        "num_slots": backend.info.parallel,
        "kv_tokens": backend.info.kv_tokens,
        "batch_tokens": backend.limits.batch_tokens,
        "embedding_batch_tokens": backend.limits.embedding_batch_tokens,
        "splits_prompts": backend.limits.splits_prompts,
        "num_prefix_tags": backend.limits.num_prefix_tags,
        "can_drop_last": backend.limits.can_drop_last,
        "tile_tokens": backend.limits.tile_tokens,
    }
    return Limits(**{**usual, **values})
