"""The section `limits`: rules that bound single requests, and how many of them run and wait.

Owns its keys and what single keys of it cannot show. What the rules mean is `admission`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, PlainValidator, StringConstraints

from openclawctl.wire.fields import suggestion
from openclawd.config import values
from openclawd.config.errors import shown
from openclawd.config.keys import Section, count, key
from openclawd.config.matching import PER_ALLOWED, RULE_NAME_PATTERN, MatchConfig, Patterns, PerText

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from openclawd.config.source import KeyPath

MOST_TOKENS: Final = 2**31 - 1
MOST_REQUESTS: Final = 1_000_000

ON_TOO_LONG_ALLOWED: Final = "error, truncate_head, truncate_middle or fallback:MODEL"
OnTooLongText = Annotated[str, AfterValidator(values.on_too_long)]

_TOKEN_KEYS: Final = ("max_prompt_tokens", "max_completion_tokens", "max_total_tokens")
_COUNT_KEYS: Final = ("max_parallel", "max_queued", "max_queue_s")
_NO_LIMIT: Final = "no limit"


def _most(high: int, *, low: int = 1, meaning: str) -> Any:
    return count(None, low=low, high=high, meaning=meaning, default_text=_NO_LIMIT)


class WhenConfig(Section):
    """When a rule applies; what is left out does not matter."""

    queue_depth_over: int | None = count(
        None,
        low=0,
        high=MOST_REQUESTS,
        meaning="More requests than this wait for the model.",
        default_text="any",
    )
    budget_left_below: float | None = key(
        None,
        meaning="Less than this share is left of the tightest budget that the request counts in.",
        allowed="a number from 0 to 1",
        default_text="any",
        ge=0,
        le=1,
    )
    operation: Patterns = key(
        [],
        meaning="The operation: generate, chat, embed, classify or rerank.",
        allowed="a pattern, or a list of patterns",
        default_text="any",
    )
    app: Patterns = key(
        [],
        meaning="What the client calls itself (`app`).",
        allowed="a pattern, or a list of patterns",
        default_text="any",
    )
    prompt_tokens_over: int | None = count(
        None,
        low=0,
        high=MOST_TOKENS,
        meaning="The prompt has more tokens than this, before anything is cut.",
        default_text="any",
    )

    def conditions(self) -> dict[str, Any] | None:
        """As the arguments of `admission.limit_rules.When`; None for no condition at all."""
        if not self.model_fields_set:
            return None
        patterns = {"operation": tuple(self.operation), "app": tuple(self.app)}
        return {**self.model_dump(), **patterns}


class LimitConfig(Section):
    """One rule. All that fit a request apply together, and of each value the strictest wins."""

    name: Annotated[str, StringConstraints(pattern=RULE_NAME_PATTERN, max_length=64)] = key(
        ...,
        meaning="What error messages call it.",
        allowed="a name of letters, digits and . _ : -, beginning with a letter or digit",
        default_text="(required)",
    )
    match: Annotated[MatchConfig, BeforeValidator(values.empty_if_nil)] = key(
        MatchConfig(), meaning="Which requests it is about.", allowed="a map"
    )
    per: PerText = key(
        "principal",
        meaning="Whose requests `max_parallel` and `max_queued` count together.",
        allowed=PER_ALLOWED,
    )
    max_prompt_tokens: int | None = _most(
        MOST_TOKENS, meaning="Most prompt tokens of a request; of `embed`, of each text."
    )
    max_completion_tokens: int | None = _most(
        MOST_TOKENS, meaning="Most completion tokens of a request, all its choices together."
    )
    max_total_tokens: int | None = _most(
        MOST_TOKENS, meaning="Most tokens of a request, prompt and all choices together."
    )
    max_parallel: int | None = _most(
        MOST_REQUESTS, meaning="Most requests at once; further ones wait, first come first served."
    )
    max_queued: int | None = _most(
        MOST_REQUESTS,
        low=0,
        meaning="Most requests that wait: for `max_parallel`, a rate limit, a budget, their model;"
        " further ones that would have to wait are refused as `overloaded`.",
    )
    max_queue_s: Annotated[float | None, PlainValidator(values.duration_or_none_s)] = key(
        None,
        alias="max_queue_time",
        meaning="How long a request may wait before it ends as `overloaded`.",
        allowed="a duration such as 30s",
        default_text=_NO_LIMIT,
    )
    when: Annotated[WhenConfig, BeforeValidator(values.empty_if_nil)] = key(
        WhenConfig(),
        meaning="When the rule applies: while all of these hold.",
        allowed="a map",
        default_text="always",
    )
    on_too_long: OnTooLongText = key(
        "error",
        meaning="What becomes of a prompt that is over `max_prompt_tokens` or `max_total_tokens`."
        " See below.",
        allowed=ON_TOO_LONG_ALLOWED,
    )

    def rule(self) -> dict[str, Any]:
        """As plain values, named like the fields of `admission.limit_rules.LimitRule`: `match` as
        the arguments of `Match`, `when` of `When`, `per` and `on_too_long` as texts."""
        plain = {name: getattr(self, name) for name in ("name", "per", *_TOKEN_KEYS, *_COUNT_KEYS)}
        return {
            **plain,
            "match": self.match.patterns(),
            "when": self.when.conditions(),
            "on_too_long": self.on_too_long,
        }


def contradictions(
    rules: Iterable[LimitConfig], models: Collection[str]
) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong with rules that are right by themselves. `models` are the names there are."""
    places: dict[str, int] = {}
    for number, rule in enumerate(rules):
        here: KeyPath = ("limits", number)
        if (first := places.setdefault(rule.name, number)) != number:
            yield (*here, "name"), f"found {shown(rule.name)}, as in limits[{first}]; use another"
        if all(getattr(rule, name) is None for name in (*_TOKEN_KEYS, *_COUNT_KEYS)):
            names = ", ".join((*_TOKEN_KEYS, "max_parallel", "max_queued", "max_queue_time"))
            yield here, f"the rule limits nothing; give it one of {names}"
        elif rule.on_too_long != "error" and not (rule.max_prompt_tokens or rule.max_total_tokens):
            message = "it needs max_prompt_tokens or max_total_tokens beside it"
            yield (*here, "on_too_long"), message
        for message in wrong_fallback(rule.on_too_long, models):
            yield (*here, "on_too_long"), message


def wrong_fallback(on_too_long: str | None, models: Collection[str]) -> Iterator[str]:
    """What is wrong with the model that a policy falls back to, if it is none of these."""
    name = (on_too_long or "").partition(":")[2]
    if name and name not in models:
        known = ", ".join(models) or "none"
        yield f"found {shown(name)}, which is no model; allowed: {known}" + suggestion(
            name, list(models)
        )
