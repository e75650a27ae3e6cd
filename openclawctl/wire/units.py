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
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_duration_s(text: str | float) -> float:
    """Seconds in `90`, `1.5h`, `5m`, `1h30m`. Raises `ValueError` with what is allowed."""
    if isinstance(text, int | float) and not isinstance(text, bool):
        seconds = float(text)
    else:
        seconds = _sum_of_parts(str(text))
    if not 0 <= seconds < 1e10:
        raise ValueError(f"{text!r} is not a duration between 0 and 300 years")
    return seconds


def parse_size_bytes(text: str | int) -> int:
    """Bytes in `4GiB`, `500MB`, `1048576`. Raises `ValueError` with what is allowed."""
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    match = _QUANTITY.fullmatch(str(text))
    unit = (match and match[2]) or "B"
    if match is None or unit not in _SIZE_UNITS:
        raise ValueError(f"{text!r} is not a size; write a number and one of {_list(_SIZE_UNITS)}")
    return round(float(match[1]) * _SIZE_UNITS[unit])


def format_size(num_bytes: float) -> str:
    """`1.5 GiB`: the largest binary unit in which the number is at least one."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if num_bytes >= _SIZE_UNITS[unit]:
            return f"{num_bytes / _SIZE_UNITS[unit]:.1f} {unit}"
    return f"{num_bytes:.0f} B"


def format_duration(seconds: float) -> str:
    """`3d 4h`, `5m 12s`, `8.2s`, `35ms`: two units at most."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    for big, small in (("d", "h"), ("h", "m"), ("m", "s")):
        size = int(_DURATION_UNITS[big])
        if whole >= size:
            rest = whole % size // int(_DURATION_UNITS[small])
            return f"{whole // size}{big} {rest}{small}" if rest else f"{whole // size}{big}"
    raise AssertionError("60 seconds or more are at least a minute")


def _sum_of_parts(text: str) -> float:
    total, position = 0.0, 0
    while match := _QUANTITY.match(text, position):
        unit = match[2] or "s"
        if unit not in _DURATION_UNITS or (not match[2] and match.end() != len(text)):
            break
        total, position = total + float(match[1]) * _DURATION_UNITS[unit], match.end()
    if not text or position != len(text):
        raise ValueError(
            f"{text!r} is not a duration; write a number and one of {_list(_DURATION_UNITS)}"
        )
    return total


def _list(units: dict[str, float] | dict[str, int]) -> str:
    return ", ".join(units)
