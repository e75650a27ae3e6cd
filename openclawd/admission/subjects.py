"""Whose a request is, as rules see it, and which requests a rule is about.

Owns what limits, rate limits and budgets have in common: a rule `fits` some requests, and those
that it counts together share a *bucket* (`Per`). Pure.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field, fields
from fnmatch import translate
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


MAX_KNOWN: Final = 4096
"""Subjects of which it is remembered which rules fit them: matching patterns takes longer than all
the rest. What fits is a pure function of the subject and the configuration."""


class Subject(NamedTuple):
    """One request. `principal` is `user:alice` or `key:marketing`; `groups` are the names of the
    caller's groups; `key` is empty without an API key. `app` and `session` are what the client
    says; a session is empty when it says nothing.

    A tuple, because it is what is remembered by: these are hashed in no time."""

    principal: str
    groups: tuple[str, ...] = ()
    key: str = ""
    tier: str = ""
    app: str = ""
    session: str = ""
    model: str = ""
    operation: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    """Patterns (`fnmatch`: `*`, `?`, `[...]`) for each property; empty ones fit every request. Of
    several patterns for one property one must fit, and so for every property."""

    principal: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    tier: tuple[str, ...] = ()
    app: tuple[str, ...] = ()
    session: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    operation: tuple[str, ...] = ()
    _tests: tuple[tuple[str, Callable[[str], object]], ...] = field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Compile what is asked for: `fits` is in the way of every request, for every rule."""
        tests = tuple((name, _test_of(patterns)) for name, patterns in self.given().items())
        object.__setattr__(self, "_tests", tests)

    def given(self) -> dict[str, tuple[str, ...]]:
        """The properties for which there are patterns."""
        named = ((each.name, getattr(self, each.name)) for each in fields(self) if each.init)
        return {name: patterns for name, patterns in named if patterns}

    def fits(self, subject: Subject) -> bool:
        for name, test in self._tests:
            if name == "group":
                if not any(map(test, subject.groups)):
                    return False
            elif not test(getattr(subject, name)):
                return False
        return True


class Per(enum.Enum):
    """Who shares one count of a rule."""

    ALL = "all"
    PRINCIPAL = "principal"
    KEY = "key"
    APP = "app"
    SESSION = "session"
    TIER = "tier"
    MODEL = "model"

    def bucket(self, subject: Subject) -> str:
        """The name of the count that a request is in. Sessions are those of one principal."""
        match self:
            case Per.ALL:
                return ""
            case Per.SESSION:
                return f"{subject.principal} {subject.session}"
            case _:
                value: str = getattr(subject, self.value)
                return value


def _test_of(patterns: tuple[str, ...]) -> Callable[[str], object]:
    """Does a value fit one of several patterns? As `fnmatch.fnmatchcase`."""
    return re.compile("|".join(map(translate, patterns))).match
