"""Money as people write it (`12.50`) and as it is counted: whole micro-units of a currency.

Which currency is the administrator's business; nothing here multiplies or divides.
"""

from __future__ import annotations

import re
from typing import Final

MICRO: Final = 1_000_000
"""Micro-units in one unit of the currency."""

MAX_MONEY: Final = 10**18
"""The most that is counted, in micro-units: sums of many stay within SQLite's 64 bits."""

_MONEY: Final = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,6}))?")


def parse_money(text: str) -> int:
    """Micro-units in `12`, `0.10`, `0.000001`. Raises `ValueError` for anything else."""
    match = _MONEY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no amount of money; write it like 12.50, to six places")
    return int(match[1]) * MICRO + int((match[2] or "").ljust(6, "0"))


def format_money(micro: int) -> str:
    """`12.50`, `0.0001`: exact, with two places at least."""
    whole, rest = divmod(abs(micro), MICRO)
    places = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if micro < 0 else ''}{whole}.{places}"
