"""One request to any server, what came back and when, and what several of them come to.

Owns the words in which scenarios ask and count. Knows no server and no socket.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, in nobody's words. Either `prompt` or `messages`. What is None is not sent."""

    max_tokens: int
    prompt: str | None = None
    messages: list[dict[str, str]] | None = None
    temperature: float = 0
    seed: int | None = None
    ignore_eos: bool = True
    priority: str | None = None
    schema: dict[str, Any] | None = None
    key: str | None = None


@dataclass(slots=True)
class Answer:
    """What came, and when. One time for each token; tokens that came together have the same one.
    A count that the server does not tell is None; `token_ids` are empty where it tells none."""

    sent_s: float
    end_s: float = 0.0
    token_times_s: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    is_cut: bool = False
    error: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def ttft_s(self) -> float:
        return self.token_times_s[0] - self.sent_s

    @property
    def decode_rate(self) -> float:
        """Tokens per second from the first one on."""
        times_s = self.token_times_s
        return (len(times_s) - 1) / (times_s[-1] - times_s[0])

    @property
    def gaps_s(self) -> list[float]:
        return [later - sooner for sooner, later in pairwise(self.token_times_s)]


def check(answers: Iterable[Answer], *, server: str, prompt_tokens: int, tokens: int) -> None:
    """That a server read and wrote as many tokens as it was asked, and none from a cache. What it
    does not tell is taken on trust."""
    for answer in answers:
        num_read, num_written = answer.prompt_tokens, len(answer.token_times_s)
        assert num_read in {None, prompt_tokens}, f"{server} read {num_read} tokens"
        assert num_written == tokens, f"{server} wrote {num_written} tokens, not {tokens}"
        assert (answer.cached_tokens or 0) <= 1, f"{server} knew {answer.cached_tokens} tokens"


def total_s(answers: Sequence[Answer]) -> float:
    """From the first request sent to the last one done."""
    return max(each.end_s for each in answers) - min(each.sent_s for each in answers)


def decode_rate(answers: Iterable[Answer]) -> float:
    """Tokens per second of several at once, from the first token of any on."""
    times_s = sorted(time_s for each in answers for time_s in each.token_times_s)
    return (len(times_s) - 1) / (times_s[-1] - times_s[0])


def ttfts_s(answers: Iterable[Answer]) -> list[float]:
    return [answer.ttft_s for answer in answers]


def gaps_s(answers: Iterable[Answer]) -> list[float]:
    return [gap for answer in answers for gap in answer.gaps_s]
