"""A bar chart as SVG, which any browser shows. Knows numbers and labels, not what they mean."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from openclawctl.cli.shell import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

_BAR_HEIGHT: Final = 18
_PITCH: Final = 26
_TOP: Final = 40
_LABELS: Final = 260
_NUMBERS: Final = 140
_WIDTH: Final = 960
_MAX_LABEL_CHARS: Final = 36
_COLOUR: Final = "#3b6ea5"
_FONT: Final = 'font-family="sans-serif" font-size="13"'


def bar_chart(title: str, bars: Sequence[tuple[str, float, str]]) -> str:
    """Bars from top to bottom: a label, a value of 0 or more, and the value as text."""
    most = max((value for _, value, _ in bars), default=0) or 1
    height = _TOP + _PITCH * len(bars) + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" {_FONT}>',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="24" font-size="16">{escape(title)}</text>',
    ]
    for number, (label, value, text) in enumerate(bars):
        y = _TOP + number * _PITCH
        width = (_WIDTH - _LABELS - _NUMBERS) * value / most
        size = f'width="{width:.1f}" height="{_BAR_HEIGHT}" fill="{_COLOUR}"'
        place = f'y="{y + _BAR_HEIGHT - 4}"'
        name = escape(_short(label))
        lines += [
            f'<text x="{_LABELS - 8}" {place} text-anchor="end">{name}</text>',
            f'<rect x="{_LABELS}" y="{y}" {size}/>',
            f'<text x="{_LABELS + width + 6:.1f}" {place}>{escape(text)}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


def _short(label: str) -> str:
    """XML has no place for control characters."""
    text = one_line(label)
    return text if len(text) <= _MAX_LABEL_CHARS else text[: _MAX_LABEL_CHARS - 1] + "…"
