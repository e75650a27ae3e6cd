"""`rate_limits`: how many tokens and requests in how long, counted per what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import BeforeValidator, PlainValidator, StringConstraints

from openclawd.config import values
from openclawd.config.keys import Section, count, key
from openclawd.config.matching import PER_ALLOWED, RULE_NAME_PATTERN, MatchConfig, PerText

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SHORTEST_WINDOW_S: Final = 0.1
"""Below that, the milliseconds by which timers are late would count."""

LONGEST_WINDOW_S: Final = 366 * 86_400.0
_MOST: Final = 10**12


def _window_s(value: object) -> float:
    seconds = values.duration_s(value)
    if not SHORTEST_WINDOW_S <= seconds <= LONGEST_WINDOW_S:
        raise ValueError("out of range")
    return seconds


class RateLimitConfig(Section):
    """One rule."""

    name: Annotated[str, StringConstraints(pattern=RULE_NAME_PATTERN, max_length=64)] = key(
        ...,
        meaning="What errors and reports call the rule; each has a name of its own.",
        allowed="letters, digits and . _ : -, beginning with a letter or digit, 64 at most",
        default_text="(required)",
    )
    match: Annotated[MatchConfig, BeforeValidator(values.empty_if_nil)] = key(
        MatchConfig(), meaning="Which requests the rule is about.", allowed="a map"
    )
    per: PerText = key(
        "principal",
        meaning="Who shares one count: every caller has its own, or every app, and so on.",
        allowed=PER_ALLOWED,
    )
    tokens: int | None = count(
        None,
        low=1,
        high=_MOST,
        meaning="Most tokens in any `window`. Prompt tokens, cached ones too, count when a request"
        " is admitted, completion tokens as they come. A running request is never cut: what it is"
        " over, later requests wait for.",
        default_text="no limit",
    )
    requests: int | None = count(
        None,
        low=1,
        high=_MOST,
        meaning="Most requests in any `window`, those that are cancelled included.",
        default_text="no limit",
    )
    window_s: Annotated[float, PlainValidator(_window_s)] = key(
        60.0,
        alias="window",
        meaning="How long it takes until something counts no more. It slides: `1m` is any 60"
        " seconds, not those of a clock, which may jump without effect.",
        allowed="a duration from 100ms to 366d, such as 1s, 1m, 1h or 1d",
        default_text="1m",
    )
    on_exceed: Literal["reject", "queue"] = key(
        "reject",
        meaning="What becomes of a request that there is no room for: it is refused with"
        " `rate-limited` and the time after which to try again, or it waits in line.",
        allowed="reject or queue",
    )
    max_wait_s: Annotated[float, PlainValidator(values.duration_s)] = key(
        30.0,
        alias="max_wait",
        meaning="With `on_exceed: queue`: longest wait. What would have to wait longer is refused"
        " at once.",
        allowed="a duration such as 30s",
        default_text="30s",
    )
    max_waiting: int = count(
        100,
        low=1,
        high=100_000,
        meaning="With `on_exceed: queue`: most requests that wait for one count.",
    )


def contradictions(rules: Sequence[RateLimitConfig]) -> Iterator[tuple[int, str, str]]:
    """Rules that make no sense: which, the key, and why."""
    names: set[str] = set()
    for index, rule in enumerate(rules):
        if rule.name in names:
            yield index, "name", f"found {rule.name!r} twice; each rule needs a name of its own"
        names.add(rule.name)
        if rule.tokens is None and rule.requests is None:
            yield index, "name", f"{rule.name} limits nothing; write tokens, requests or both"
        if rule.on_exceed == "reject":
            for field, name in (("max_wait_s", "max_wait"), ("max_waiting", "max_waiting")):
                if field in rule.model_fields_set:
                    yield index, name, "nobody waits without on_exceed: queue"
