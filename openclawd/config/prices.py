"""What models cost (`prices`, `currency`), and how long the ledger keeps what was used."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import PlainValidator, StringConstraints

from openclawctl.wire.money import parse_money
from openclawd.config import values
from openclawd.config.keys import Section, key


def _money(value: object) -> int:
    """Micro-units. A number is taken as it is written: YAML reads 0.10 as one, and gives 0.1."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("not an amount of money")
    amount = parse_money(str(value))
    if amount > _MAX_RATE:
        raise ValueError("more than any model costs")
    return amount


_MAX_RATE: Final = 10**12
"""A million of the currency for a million tokens: a request of 2**24 tokens still costs less than
SQLite's 64 bits hold, as does the sum of a million of them."""

Money = Annotated[int, PlainValidator(_money)]
Currency = Annotated[str, StringConstraints(pattern="^[A-Z][A-Z0-9]{2,7}$")]
CURRENCY_ALLOWED: Final = "a code such as EUR: 3 to 8 capital letters and digits"
_ALLOWED: Final = 'an amount such as "0.10": up to 1000000, at most six places'


def _rate(meaning: str, *, default_text: str = "0") -> Any:
    return key(None, meaning=meaning, allowed=_ALLOWED, default_text=default_text)


class PriceConfig(Section):
    """What one model costs, in `currency`."""

    prompt: Money | None = _rate("For a million prompt tokens that are computed.")
    cached: Money | None = _rate(
        "For a million prompt tokens that are taken from the cache.", default_text="as `prompt`"
    )
    completion: Money | None = _rate("For a million completion tokens.")
    cpu_second: Money | None = _rate(
        "For each second in which a request is computed, beside the prices of tokens: what the"
        " model's CPUs cost."
    )
    gpu_second: Money | None = _rate("The same for its GPU; the two add up.")

    def rates(self) -> dict[str, int]:
        """As the arguments of `admission.prices.Price`: micro-units for a million tokens, and for a
        second."""
        prompt = self.prompt or 0
        return {
            "prompt": prompt,
            "cached": prompt if self.cached is None else self.cached,
            "completion": self.completion or 0,
            "second": (self.cpu_second or 0) + (self.gpu_second or 0),
        }

    @property
    def is_by_time(self) -> bool:
        """Does a second of computing cost anything?"""
        return bool(self.cpu_second or self.gpu_second)


class LedgerConfig(Section):
    """How long the ledger keeps things."""

    keep_usage_s: Annotated[float, PlainValidator(values.keep_s)] = key(
        34_560_000.0,
        alias="keep_usage",
        meaning="How long requests stay in the ledger; older ones are deleted at the daemon's"
        " start and once a day.",
        allowed="a duration of 1d or more such as 400d, or forever",
        default_text="400d",
    )
