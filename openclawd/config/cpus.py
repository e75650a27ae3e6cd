"""CPUs by their numbers, as Linux writes them: `0-3,8` (cpuset(7), "List format")."""

from __future__ import annotations

from typing import Final

_MOST_CPUS: Final = 8192
"""CONFIG_NR_CPUS of the largest kernels (arch/x86/Kconfig)."""


def parse_cpus(text: str) -> frozenset[int]:
    """The numbers in a list such as `0-3,8`. Raises `ValueError`."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        low = _number(first)
        high = _number(last) if dash else low
        if low > high:
            raise ValueError("a range that ends before it begins")
        numbers.update(range(low, high + 1))
    return frozenset(numbers)


def format_cpus(numbers: frozenset[int]) -> str:
    """The same the other way round, with ranges where there are any."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def cpus_or_none(value: object) -> frozenset[int] | None:
    """What the configuration holds: text, one number, or a list of numbers."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, list):
        value = ",".join(map(str, value))
    if not isinstance(value, str):
        raise ValueError("not a list of CPUs")
    return parse_cpus(value)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) >= _MOST_CPUS:
        raise ValueError("not the number of a CPU")
    return int(text)
