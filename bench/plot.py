"""A plot as SVG: groups of bars, each the median of its samples, with a line from least to most.

Owns the drawing, by hand: a library for one kind of picture would be a large dependency. Colours
are readable on light and dark pages.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any, Final
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WIDTH: Final = 760
HEIGHT: Final = 330
LEFT: Final = 56
RIGHT: Final = 12
TOP: Final = 64
BOTTOM: Final = 34
BAR_SHARE: Final = 0.8
"""Of a group's width; the rest is the space between groups."""

COLOURS: Final = ("#1b7fc4", "#e0862f", "#8a6bb8", "#6f7781")
GREY: Final = "#808890"
NUM_TICKS: Final = 5


def svg(plot: dict[str, Any]) -> str:
    """The picture of a `measure.Plot` as a map."""
    series: dict[str, list[Sequence[float] | None]] = plot["series"]
    samples = [group for groups in series.values() for group in groups if group]
    scale = _Scale(max(max(group) for group in samples))
    frame = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="{GREY}">'
    )
    parts = [
        frame,
        _text(LEFT, 18, plot["title"], size=14),
        *_legend(list(series)),
        *_axis(scale, plot["unit"]),
    ]
    group_width = (WIDTH - LEFT - RIGHT) / len(plot["labels"])
    for place, label in enumerate(plot["labels"]):
        start = LEFT + place * group_width
        parts.append(_text(start + group_width / 2, HEIGHT - 12, label, anchor="middle"))
        parts += _group([groups[place] for groups in series.values()], start, group_width, scale)
    return "\n".join([*parts, "</svg>\n"])


class _Scale:
    """From values to heights. It begins at 0 and ends at a round number above `largest`."""

    def __init__(self, largest: float) -> None:
        raw = (largest or 1.0) / NUM_TICKS
        unit = 10.0 ** math.floor(math.log10(raw))
        self.step = unit * next(m for m in (1, 2, 2.5, 5, 10) if m * unit >= raw)
        self.top = self.step * math.ceil((largest or 1.0) / self.step)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - value / self.top * (HEIGHT - TOP - BOTTOM)

    def ticks(self) -> Iterator[float]:
        for number in range(round(self.top / self.step) + 1):
            yield number * self.step


def _legend(names: list[str]) -> list[str]:
    parts, x = [], float(LEFT)
    for name, colour in zip(names, COLOURS, strict=False):
        parts.append(f'<rect x="{x:.0f}" y="30" width="11" height="11" fill="{colour}"/>')
        parts.append(_text(x + 16, 40, name))
        x += 34 + 6.6 * len(name)
    return parts


def _axis(scale: _Scale, unit: str) -> list[str]:
    parts = [_text(LEFT - 6, TOP - 8, unit, anchor="end")]
    for value in scale.ticks():
        y = scale.y(value)
        parts.append(
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{GREY}" stroke-opacity=".3"/>'
        )
        parts.append(_text(LEFT - 6, y + 4, f"{value:g}", anchor="end"))
    return parts


def _group(
    groups: list[Sequence[float] | None], start: float, width: float, scale: _Scale
) -> list[str]:
    """The bars of one label; a series without samples leaves no gap."""
    present = [(place, group) for place, group in enumerate(groups) if group]
    bar_width = width * BAR_SHARE / max(1, len(present))
    left = start + width * (1 - BAR_SHARE) / 2
    parts = []
    for number, (place, group) in enumerate(present):
        x, y = left + number * bar_width, scale.y(statistics.median(group))
        middle = x + bar_width / 2
        parts.append(
            f'<rect x="{x + 1:.1f}" y="{y:.1f}" width="{bar_width - 2:.1f}" '
            f'height="{scale.y(0) - y:.1f}" fill="{COLOURS[place % len(COLOURS)]}"/>'
        )
        parts.append(
            f'<path d="M{middle:.1f} {scale.y(min(group)):.1f}V{scale.y(max(group)):.1f}" '
            f'stroke="{GREY}" stroke-width="2"/>'
        )
    return parts


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-size="{size}">'
        f"{escape(text)}</text>"
    )
