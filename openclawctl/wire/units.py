"""Sizes (`4GiB`) and durations (`5m`) as people write them, and back."""

from __future__ import annotations

import re
from typing import Final

_DURATION_UNITS: Final = {
    "ms": 0.001,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 604800.0,
}
_SIZE_UNITS: Final = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_duration_s(text: str | float) -> float:
    """Seconds in `90`, `1.5h`, `5m`, `1h30m`. Raises `ValueError` with what is allowed."""
    seconds = _sum_of_parts(str(text)) if isinstance(text, str | bool) else text
    if not 0 <= seconds < 1e10:
        raise ValueError(f"{text!r} is not a duration between 0 and 300 years")
    return float(seconds)


def parse_size_bytes(text: str | int) -> int:
    """Bytes in `4GiB`, `500MB`, `1048576`. Raises `ValueError` with what is allowed."""
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    match = _QUANTITY.fullmatch(str(text))
    unit = (match and match[2]) or "B"
    if match is None or unit not in _SIZE_UNITS:
        raise ValueError(f"{text!r} is not a size; write a number and one of {_list(_SIZE_UNITS)}")
    size = float(match[1]) * _SIZE_UNITS[unit]
    if size >= 2**63:
        raise ValueError(f"{text!r} is more than any machine has")
    return round(size)


def format_size(num_bytes: float) -> str:
    """`1.5 GiB`: the largest binary unit of which there is at least one."""
    amount, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if round(amount, 1) < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"


def format_duration(seconds: float) -> str:
    """`3d 4h`, `5m 12s`, `8.2s`, `35ms`: two units at most."""
    if (milliseconds := round(seconds * 1000)) < 1000:
        return f"{milliseconds}ms"
    if (tenths := round(seconds, 1)) < 60:
        return f"{tenths}s"
    whole = round(seconds)
    for big, small in (("d", "h"), ("h", "m")):
        if whole >= _DURATION_UNITS[big]:
            return _two_units(whole, big, small)
    return _two_units(whole, "m", "s")


def _two_units(whole: int, big: str, small: str) -> str:
    size = int(_DURATION_UNITS[big])
    rest = whole % size // int(_DURATION_UNITS[small])
    return f"{whole // size}{big} {rest}{small}" if rest else f"{whole // size}{big}"


def _sum_of_parts(text: str) -> float:
    total, position = 0.0, 0
    while match := _QUANTITY.match(text, position):
        unit = match[2] or "s"
        is_alone = position == 0 and match.end() == len(text)
        if unit not in _DURATION_UNITS or not (match[2] or is_alone):
            break
        total, position = total + float(match[1]) * _DURATION_UNITS[unit], match.end()
    if not text or position != len(text):
        raise ValueError(
            f"{text!r} is not a duration; write a number and one of {_list(_DURATION_UNITS)}"
        )
    return total


def _list(units: dict[str, float] | dict[str, int]) -> str:
    return ", ".join(units)
