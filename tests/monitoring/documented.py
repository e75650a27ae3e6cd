"""The table of docs/monitoring.md: every metric with its labels."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_ROW = re.compile(r"^\| `((?:openclawd|process)_\w+)` \| (.*?) \| (.*?) \|$", re.MULTILINE)

_ROWS = _ROW.findall((ROOT / "docs" / "monitoring.md").read_text())
METRICS = {name: frozenset(re.findall(r"`(\w+)`", labels)) for name, labels, _ in _ROWS}
HISTOGRAMS = {name for name, _, meaning in _ROWS if meaning.startswith("histogram")}


def family(name: str) -> str:
    """Of a sample's name: that of a histogram without its ending."""
    short = re.sub("_(bucket|sum|count)$", "", name)
    return short if short in HISTOGRAMS else name
