"""Whose a request is, as rules see it, and which requests a rule is about.

Owns what limits, rate limits and budgets have in common: a rule `fits` some requests, and those
that it counts together share a *bucket* (`Per`). Pure.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True)
class Subject:
    """One request. `principal` is `user:alice` or `key:marketing`; `groups` are the names of the
    caller's groups; `key` is empty without an API key. `app` and `session` are what the client
    says; a session is empty when it says nothing."""

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

    def fits(self, subject: Subject) -> bool:
        return all(
            _fits_any(getattr(self, field.name), _values(subject, field.name))
            for field in fields(self)
            if getattr(self, field.name)
        )


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


def _values(subject: Subject, name: str) -> tuple[str, ...]:
    if name == "group":
        return subject.groups
    value: str = getattr(subject, name)
    return (value,)


def _fits_any(patterns: tuple[str, ...], values: tuple[str, ...]) -> bool:
    return any(fnmatchcase(value, pattern) for value in values for pattern in patterns)
