"""The section `budgets:`: how much may be used in a window of time, by whom, and what then."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, PlainValidator, StringConstraints

from openclawctl.wire.fields import suggestion
from openclawctl.wire.money import parse_money
from openclawctl.wire.units import parse_duration_s
from openclawd.config import values
from openclawd.config.errors import shown
from openclawd.config.keys import Section, count, key
from openclawd.config.matching import PER_ALLOWED, MatchConfig, PerText

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

MAX_BUDGET_TOKENS: Final = 10**15
"""More than any machine computes; sums of it stay within 64 bits."""

_HOUR_S: Final = 3600
_LONGEST_ROLLING_S: Final = 400 * 24 * _HOUR_S
_UNITS: Final = ("hour", "day", "week", "month", "lifetime")
_FALLBACK: Final = re.compile(r"fallback:\s*(\S+)")
_SHARES: Final = 1000


def _window(value: object) -> str | int:
    """A calendar unit, or the seconds of a rolling window."""
    if value in _UNITS:
        return str(value)
    if not isinstance(value, str):
        raise ValueError("no window")
    seconds = parse_duration_s(value)
    if seconds % _HOUR_S or not _HOUR_S <= seconds <= _LONGEST_ROLLING_S:
        raise ValueError("not whole hours")
    return int(seconds)


def _zone(value: object) -> str:
    if value == "UTC":
        return value
    try:
        ZoneInfo(str(value))
    except (KeyError, OSError) as error:  # KeyError: no such file; OSError: a folder
        raise ValueError("no time zone") from error
    return str(value)


def _money(value: object) -> int | None:
    """Micro-units. A number with a point is refused: YAML has made a binary fraction of it."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError("no money")
    return parse_money(str(value))


def _on_exhausted(value: object) -> str:
    if isinstance(value, str) and (value == "reject" or _FALLBACK.fullmatch(value)):
        return value
    raise ValueError("neither reject nor fallback")


def _alerts(value: object) -> tuple[int, ...]:
    """Shares as thousandths, ascending."""
    if not isinstance(value, list) or len(value) > 16:
        raise ValueError("no list")
    return tuple(sorted({_share(each) for each in value}))


def _share(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.001 <= value <= 1:
        raise ValueError("no share")
    return round(value * _SHARES)


class BudgetConfig(Section):
    """One budget."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = key(
        ...,
        meaning="What errors, alerts and `openclawctl budgets` call it. Under another name it"
        " begins at nothing.",
        allowed="letters, digits and . _ -, beginning with a letter or digit",
        default_text="(required)",
    )
    match: Annotated[MatchConfig, BeforeValidator(values.empty_if_nil)] = key(
        MatchConfig(),
        meaning="Which requests count.",
        allowed="a map",
        default_text="every request",
    )
    per: PerText = key(
        "all", meaning="Who shares one count, and so has the whole limit.", allowed=PER_ALLOWED
    )
    tokens: int | None = count(
        None,
        low=1,
        high=MAX_BUDGET_TOKENS,
        meaning="Most prompt and completion tokens in one window.",
        default_text="no limit",
    )
    money: Annotated[int | None, PlainValidator(_money)] = key(
        None,
        meaning="Most money in one window, by the models' prices.",
        allowed='an amount in quotes such as "12.50", to six places',
        default_text="no limit",
    )
    window: Annotated[str | int, PlainValidator(_window)] = key(
        "month",
        meaning="When it begins anew: with the calendar in `time_zone` (weeks begin on Monday), or"
        " never (`lifetime`); or it covers the last hours (`24h`, `7d`; counted in sixtieths, so"
        " what was used comes back up to that much late). A changed window begins at nothing.",
        allowed="hour, day, week, month, lifetime, or a duration of whole hours up to 400d",
    )
    time_zone: Annotated[str, PlainValidator(_zone)] = key(
        "UTC",
        meaning="Whose calendar it goes by.",
        allowed="the name of a time zone such as Europe/Berlin",
    )
    on_short: Literal["shrink", "reject"] = key(
        "shrink",
        meaning="What becomes of a request that may need more than is left: `shrink` lowers its"
        " maximum of completion tokens and says so. What only open requests hold is waited for.",
        allowed="shrink or reject",
    )
    on_exhausted: Annotated[str, PlainValidator(_on_exhausted)] = key(
        "reject",
        meaning="What becomes of a request of which not even the prompt and one token fit.",
        allowed="reject, or fallback:MODEL",
    )
    alerts: Annotated[tuple[int, ...], BeforeValidator(_alerts)] = key(
        (800, 950, 1000),
        meaning="Shares of the limit at which an alert is logged, once in a window.",
        allowed="a list of numbers from 0.001 to 1",
        default_text="[0.8, 0.95, 1.0]",
    )
    max_wait_s: Annotated[float, PlainValidator(values.duration_s)] = key(
        30.0,
        alias="max_wait",
        meaning="How long a request waits for what open requests hold; then it is refused.",
        allowed="a duration such as 30s",
        default_text="30s",
    )

    @property
    def fallback(self) -> str | None:
        """The model of `on_exhausted: fallback:MODEL`."""
        match = _FALLBACK.fullmatch(self.on_exhausted)
        return match[1] if match else None

    def plain(self) -> dict[str, Any]:
        """Plain values for the server, which makes a rule of them. Money is in micro-units, shares
        in thousandths, a rolling window in seconds."""
        names = ("name", "per", "tokens", "money", "window", "time_zone", "on_short", "fallback")
        return {
            **{name: getattr(self, name) for name in (*names, "alerts", "max_wait_s")},
            "match": self.match.patterns(),
        }


def contradictions(
    budgets: Sequence[BudgetConfig], models: Collection[str], *, timed: Collection[str]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Mistakes that single keys cannot show, each with its key path. `models` are the names of
    models and aliases, `timed` the models that cost something by the second."""
    names: set[str] = set()
    for number, budget in enumerate(budgets):
        path = ("budgets", number)
        if budget.name in names:
            yield (*path, "name"), f"found {shown(budget.name)} a second time; names are unique"
        names.add(budget.name)
        if budget.tokens is None and budget.money is None:
            yield path, f"budget {budget.name} limits nothing; set tokens, money or both"
        if budget.money is not None and (found := [m for m in timed if _counts(budget, m)]):
            message = (
                f"{found[0]} counts in this budget and has a price by the second (cpu_second,"
                " gpu_second): nobody knows beforehand what a request will come to, so the limit"
                " could not be kept; price its tokens, or leave it out with match.model"
            )
            yield (*path, "money"), message
        if budget.fallback is not None and budget.fallback not in models:
            known = ", ".join(models) or "none"
            yield (
                (*path, "on_exhausted"),
                f"{shown(budget.fallback)} is no model; allowed: {known}"
                + suggestion(budget.fallback, list(models)),
            )
        elif budget.tokens is not None and _counts(budget, budget.fallback):
            message = (
                f"{budget.fallback} counts in this budget as well; leave it out of match.model"
            )
            yield (*path, "on_exhausted"), message


def _counts(budget: BudgetConfig, model: str | None) -> bool:
    patterns = budget.match.model or ["*"]
    return model is not None and any(fnmatchcase(model, pattern) for pattern in patterns)
