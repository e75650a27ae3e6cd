"""What a scheduler may do: the sizes of a model's memory and steps, and its rules.

Owns the numbers alone. Who keeps them: `scheduler.py`, `steps.py` and `kvcache.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from openclawd.engine.batch import BatchKind


@dataclass(frozen=True, slots=True)
class Limits:
    """`batch_tokens` and `embedding_batch_tokens` bound one step of each kind. Models that need a
    whole prompt at once have `splits_prompts` False; then a step's bound is a prompt's, too, and
    `max_whole_tokens` is another where a step holds several prompts.
    `num_prefix_tags` is how many prefixes can be kept; 0 for models that cannot share cells.
    Batches of `tile_tokens` or more, if there is such a number, hold decodes or parts of prompts
    and not both, in turns; the parts of prompts fill whole tiles as far as they can. Beside running
    streams, prompts are computed aside in parts of up to `aside_tokens`, if there is such a number
    and half as many are left.

    Kept cells are not free: a step passes over every cell in use, its own or not, which costs the
    smallest models about 0.2 ms a token for each 1,000 cells (SmolLM2 on two cores, measured
    2026-11-23: from 94 to 75 tokens a second with 12,000 cells). So only prefixes of
    `min_kept_tokens` are kept, which take longer to compute than to pass over, and when nobody uses
    them they take `kept_share` of the cache at most. The host's memory takes more of them, as many
    as `stowed_share` of the cache has cells. Sequences that were preempted take as much of it as
    `parked_share` of the cache at most.

    One that waits for cells may be passed `max_skips` times by others that need fewer. At
    most `max_guesses` tokens are guessed ahead for a sequence; none where those that were wrong
    cannot be dropped again (`can_drop_last`).
    """

    num_slots: int
    kv_tokens: int
    batch_tokens: int
    embedding_batch_tokens: int
    splits_prompts: bool = True
    max_whole_tokens: int | None = None
    num_prefix_tags: int = 0
    min_kept_tokens: int = 256
    kept_share: float = 0.25
    stowed_share: float = 0.25
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

    def budget(self, kind: BatchKind) -> int:
        """Tokens of one step."""
        is_embedding = kind is BatchKind.EMBEDDING
        return self.embedding_batch_tokens if is_embedding else self.batch_tokens
