"""What the analyses read and what they say: plain records. Times are local wall-clock hours."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final

WITHOUT_TEXT: Final = frozenset({"embed", "classify", "rerank"})
"""The operations that make no text; the names of the wire."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The ended requests of one hour, principal, model and operation, summed up.

    `hour` counts local wall-clock hours since 1970-01-01 00:00, so that `hour % 24` is what a clock
    on the wall shows. `cut_answers` had the finish reason `length`; `cut_tokens` are their
    completion tokens. `cost` is in micro-units of the currency, 0 without prices.
    """

    hour: int
    principal: str
    model: str
    op: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cut_answers: int = 0
    cut_tokens: int = 0
    cost: int = 0

    @property
    def tokens(self) -> int:
        """Computed or read from the cache, prompt and completion."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixSums:
    """Requests of one principal whose prompts begin with the same `length` tokens.

    `digest` is the keyed hash of these, `parent` that of the next shorter length or empty.
    `computed_tokens` are those of the prefix itself that had to be computed, over all requests; the
    other counts are of the whole requests.
    """

    model: str
    principal: str
    digest: str
    parent: str
    length: int
    requests: int
    computed_tokens: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cut_answers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPeaks:
    """The most that was in use at one moment, over so many `days` with requests: sequences at
    once, tokens of the longest sequence, and KV cells that were really needed."""

    model: str
    days: int
    slots: int
    context: int
    kv_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """How a model is configured. `sharing` is `prefix_sharing`: principal, all or off."""

    model: str
    parallel: int
    context: int
    kv_tokens: int
    sharing: str = "principal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing worth telling an administrator: what was `seen`, and what to `do` about it.

    It is worth `tokens` (computed for nothing or beyond what was expected), `cost` micro-units of
    money where there are prices, or `kv_tokens` of memory that nobody uses. `numbers` are the
    figures behind the sentence.
    """

    kind: str
    model: str
    principal: str
    seen: str
    do: str
    tokens: int = 0
    cost: int = 0
    kv_tokens: int = 0
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def order(self) -> tuple[int, int, int]:
        """Findings are told the most valuable first: by money, then compute, then memory."""
        return (-self.cost, -self.tokens, -self.kv_tokens)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
