"""One sequence: its tokens, how far they are computed, and how it ends.

Owns the counts. When it computes is the scheduler's; what its text is, is `stopping.py`'s.

Invariants: `num_computed_tokens <= len(tokens)`; a slot is held exactly while RUNNING; ENDED is
final and reached once.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from openclawd.engine.batch import BatchKind, TokenOutput
from openclawd.engine.prefixes import Owner
from openclawd.engine.sampling import SamplingParams
from openclawd.engine.speculation import Guessing
from openclawd.engine.stopping import OutputText

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


class Vocabulary(Protocol):
    """What the engine must know of tokens."""

    def piece(self, token: int) -> bytes:
        """The bytes a token adds to the text; none for control tokens."""
        ...

    def is_end(self, token: int) -> bool:
        """Does this token end a generation?"""
        ...


class State(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


class Finish(enum.Enum):
    """Why a sequence ended; the values are the finish reasons of the wire."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


Group = tuple[BatchKind, str]
"""What sequences of one batch have in common: the kind, and the adapter they are computed with."""


@dataclass(slots=True, eq=False)
class Sequence:
    """`tokens` is the prompt, then what was sampled. `rid` and `index` are the caller's names for
    it. `max_tokens` 0 means an embedding: nothing is sampled. Only sequences of one `domain` share
    prefixes; what one of domain None begins with is shared by all and kept for good. `adapter` is
    the name of a LoRA, "" for the model as it is; cells computed with one are of no use with
    another.
    `num_cached_tokens` of the prompt were there when it first ran. `mu` is that of the token
    sampled last (`TokenOutput.mu`). `parked` is where the cells of a preempted one are; `num_skips`
    counts those that were admitted before it. `shown` are control tokens whose text counts.
    `is_sound`: a token or vector has come of it. `began` numbers the sequences in the order of
    their second tokens, from which on they have a pace; so many as `arrived` says had one when this
    one came."""

    rid: int
    index: int
    tokens: list[int]
    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    text: OutputText = field(default_factory=OutputText)
    shown: Mapping[int, bytes] = field(default_factory=dict)
    priority: int = 0
    domain: str | None = ""
    adapter: str = ""
    num_cached_tokens: int | None = None
    mu: float | None = None
    kind: BatchKind = field(init=False)
    group: Group = field(init=False)
    num_prompt_tokens: int = field(init=False)
    num_computed_tokens: int = 0
    slot: int | None = None
    parked: int | None = None
    num_skips: int = 0
    is_sound: bool = False
    arrived: int = 0
    began: int = 0
    guessing: Guessing = field(default_factory=Guessing)
    state: State = State.WAITING

    def __post_init__(self) -> None:
        assert self.tokens, "a sequence without a token has nothing to compute"
        self.num_prompt_tokens = len(self.tokens)
        self.kind = BatchKind.GENERATION if self.max_tokens else BatchKind.EMBEDDING
        self.group = self.kind, self.adapter

    @property
    def owner(self) -> Owner:
        """Whose prefixes it can find, and who can find what is kept of it."""
        return Owner(self.domain, self.adapter)

    @property
    def shares_prefix(self) -> bool:
        """An embedding needs the hidden state of every token, so all of it is computed."""
        return self.kind is BatchKind.GENERATION

    @property
    def is_in_prefill(self) -> bool:
        return self.num_computed_tokens < self.num_prompt_tokens

    @property
    def is_decoding(self) -> bool:
        """Does it compute a single token, to get the next?"""
        return self.max_tokens > 0 and len(self.tokens) - self.num_computed_tokens == 1

    @property
    def num_completion_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def num_remaining_tokens(self) -> int:
        """Tokens known but not computed: the rest of the prompt, or the one sampled last."""
        return len(self.tokens) - self.num_computed_tokens

    @property
    def num_cells_needed(self) -> int:
        """The most KV cells it can ever hold."""
        return self.num_prompt_tokens + self.max_tokens

    def append(self, token: int, vocabulary: Vocabulary) -> tuple[str, Finish | None]:
        """Add a sampled token. Gives the text that may be shown now, and why the sequence ends with
        this token, if it does."""
        self.tokens.append(token)
        may_stop = self.num_completion_tokens > self.sampling.min_tokens
        piece = self.shown.get(token) or vocabulary.piece(token)
        text = self.text.feed(piece, may_stop=may_stop)
        if vocabulary.is_end(token) or self.text.has_stopped:
            return text, Finish.STOP
        is_full = self.num_completion_tokens == self.max_tokens
        return text, Finish.LENGTH if is_full else None

    def resume(
        self,
        tokens: Iterable[int],
        vocabulary: Vocabulary,
        *,
        on_text: Callable[[str], object] | None = None,
    ) -> Ended | None:
        """Bring a fresh sequence to where another process had it, which has told these tokens and
        their text (`on_text` gets it); of an embedding, its vector. Gives its end if it has nothing
        left to do."""
        finish = None if self.max_tokens else Finish.STOP
        for token in tokens:
            text, finish = self.append(token, vocabulary)
            if on_text is not None:
                on_text(text)
        if finish is None:
            return None
        self.state = State.ENDED
        return Ended(self, finish)


@dataclass(slots=True)  # not frozen: one is made for every token, which takes half as long
class Sampled:
    """A token was added to a sequence; `text` is what may be shown now, often nothing."""

    sequence: Sequence
    output: TokenOutput
    text: str


@dataclass(frozen=True, slots=True)
class Embedded:
    """A sequence's vector is complete."""

    sequence: Sequence
    vector: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """A sequence's one end; `text` is what had been held back. `failure` says why it ended with an
    error, where that is its own affair."""

    sequence: Sequence
    finish: Finish
    text: str = ""
    failure: str = ""


Effect = Sampled | Embedded | Ended
