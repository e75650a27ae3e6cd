"""Limit rules: which of them a request is under, and what each allows.

Owns what a rule is and when it applies. What follows for one request's tokens is `limits.py`'s, for
its place in line `lanes.py`'s. Pure.

Rules: all that fit a request apply together, and of each value the strictest wins. A rule with
`when` applies only while every condition of it holds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from openclawd.admission.subjects import MAX_KNOWN, Match, Per

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from openclawd.admission.subjects import Subject

FALLBACK: Final = "fallback:"


class Action(enum.Enum):
    """What becomes of a prompt that is too long."""

    ERROR = "error"
    TRUNCATE_HEAD = "truncate_head"
    TRUNCATE_MIDDLE = "truncate_middle"
    FALLBACK = "fallback"


@dataclass(frozen=True, slots=True)
class OnTooLong:
    """An action; `model` is the one to fall back to, and empty for the others."""

    action: Action = Action.ERROR
    model: str = ""

    @classmethod
    def parse(cls, text: str) -> OnTooLong:
        """`error`, `truncate_head`, `truncate_middle` or `fallback:MODEL`, as the configuration has
        it. Raises `ValueError` for anything else."""
        if text.startswith(FALLBACK) and len(text) > len(FALLBACK):
            return cls(Action.FALLBACK, text.removeprefix(FALLBACK))
        if text == Action.FALLBACK.value:
            raise ValueError("a fallback needs a model")
        return cls(Action(text))

    @property
    def serves(self) -> bool:
        """Might a prompt that is too long be served all the same?"""
        return self.action is not Action.ERROR

    @property
    def truncates(self) -> bool:
        return self.action in (Action.TRUNCATE_HEAD, Action.TRUNCATE_MIDDLE)


@dataclass(slots=True)  # not frozen: one is made for every request
class Situation:
    """How things are when a request comes. `queue_depth` requests wait for its model; `budget_left`
    gives the share, 0 to 1, that is left of its tightest budget, and is asked last; `prompt_tokens`
    are those it asks with, before anything is cut."""

    queue_depth: int = 0
    budget_left: Callable[[], float] = lambda: 1.0
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class When:
    """Conditions; None and empty ones always hold. `operation` and `app` are patterns, of which one
    must fit."""

    queue_depth_over: int | None = None
    budget_left_below: float | None = None
    operation: tuple[str, ...] = ()
    app: tuple[str, ...] = ()
    prompt_tokens_over: int | None = None

    def holds(self, subject: Subject, situation: Situation) -> bool:
        return (
            (self.queue_depth_over is None or situation.queue_depth > self.queue_depth_over)
            and (
                self.prompt_tokens_over is None or situation.prompt_tokens > self.prompt_tokens_over
            )
            and _fits(self.operation, subject.operation)
            and _fits(self.app, subject.app)
            and (self.budget_left_below is None or situation.budget_left() < self.budget_left_below)
        )


@dataclass(frozen=True, slots=True)
class LimitRule:
    """Values that None leaves open. Tokens are those of one request: `max_completion_tokens` of all
    its choices together, `max_total_tokens` of its prompt and all its choices. The other three
    count the requests of one bucket (`per`), and how long one of them may wait."""

    name: str
    match: Match = field(default_factory=Match)
    per: Per = Per.PRINCIPAL
    max_prompt_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_total_tokens: int | None = None
    max_parallel: int | None = None
    max_queued: int | None = None
    max_queue_s: float | None = None
    when: When | None = None
    on_too_long: OnTooLong = field(default_factory=OnTooLong)


class FittingRules:
    """The rules that fit a subject's requests, whatever the situation, in the order of the
    configuration."""

    def __init__(self, rules: Iterable[LimitRule], subject: Subject) -> None:
        self._subject = subject
        self._rules: Sequence[LimitRule] = [rule for rule in rules if rule.match.fits(subject)]
        self._always = all(rule.when is None for rule in self._rules)
        self.serves_too_long = any(rule.on_too_long.serves for rule in self._rules)

    def applying(self, situation: Situation) -> Sequence[LimitRule]:
        """Those that a request is under."""
        if self._always:
            return self._rules
        return [
            rule
            for rule in self._rules
            if rule.when is None or rule.when.holds(self._subject, situation)
        ]


class LimitRules:
    """`each` of them, in the order of the configuration. `of` gives those of a subject."""

    def __init__(self, rules: Iterable[LimitRule] = ()) -> None:
        self.each = tuple(rules)
        self.of = lru_cache(MAX_KNOWN)(self._fitting)

    def _fitting(self, subject: Subject) -> FittingRules:
        return FittingRules(self.each, subject)


def strictest(rules: Iterable[LimitRule], name: str) -> tuple[LimitRule, int] | None:
    """The rule with the smallest value of this name, the first one of several; None without any."""
    found: tuple[LimitRule, int] | None = None
    for rule in rules:
        value = getattr(rule, name)
        if value is not None and (found is None or value < found[1]):
            found = rule, value
    return found


def _fits(patterns: tuple[str, ...], value: str) -> bool:
    return not patterns or any(fnmatchcase(value, pattern) for pattern in patterns)
