"""What limits, rate limits and budgets have in common: which requests, counted per what."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, StringConstraints

from openclawd.config.keys import Section, key

RULE_NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._:-]*$"
PerText = Literal["all", "principal", "key", "app", "session", "tier", "model"]
PER_ALLOWED: Final = "all, principal, key, app, session, tier or model"


def _one_or_more(value: object) -> object:
    """A text alone stands for a list of it."""
    return [value] if isinstance(value, str) else value


Patterns = Annotated[
    list[Annotated[str, StringConstraints(min_length=1, max_length=256)]],
    BeforeValidator(_one_or_more),
]


def _patterns(meaning: str) -> Any:
    return key(
        [],
        meaning=meaning,
        allowed="a pattern such as alice or team-*, or a list of patterns",
        default_text="any",
    )


class MatchConfig(Section):
    """Which requests a rule is about; what is left out fits every request."""

    principal: Patterns = _patterns("The caller: `user:NAME` or `key:NAME`.")
    group: Patterns = _patterns("A group that the caller is in.")
    key: Patterns = _patterns("The name of the API key that is used.")
    tier: Patterns = _patterns("The caller's tier.")
    app: Patterns = _patterns("What the client calls itself (`app`).")
    session: Patterns = _patterns("The session that the client names.")
    model: Patterns = _patterns("The model.")
    operation: Patterns = _patterns("The operation: generate, chat, embed, classify or rerank.")

    def patterns(self) -> dict[str, tuple[str, ...]]:
        """As the arguments of `admission.subjects.Match`."""
        return {name: tuple(getattr(self, name)) for name in type(self).model_fields}
