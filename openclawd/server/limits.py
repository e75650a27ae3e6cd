"""The limit rules of the configuration, as admission takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openclawd.admission.limit_rules import LimitRule, LimitRules, OnTooLong, When
from openclawd.admission.subjects import Match, Per

if TYPE_CHECKING:
    from collections.abc import Iterable

    from openclawd.config.limits import LimitConfig


def limit_rules(sections: Iterable[LimitConfig]) -> LimitRules:
    """In the order of the file."""
    return LimitRules(map(_rule, sections))


def _rule(section: LimitConfig) -> LimitRule:
    plain = section.rule()
    when = plain.pop("when")
    return LimitRule(
        match=Match(**plain.pop("match")),
        per=Per(plain.pop("per")),
        when=None if when is None else When(**when),
        on_too_long=OnTooLong.parse(plain.pop("on_too_long")),
        **plain,
    )
