"""Prometheus' text format, version 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats).

Our own and not that of prometheus-client, which needs 25 to 45 ms of CPU for the 4,300 lines of
twenty models (measured 2026-11-29 on two cores, version 0.26), on a loop where nothing may take
10 ms, and 2 µs for each observation.

Invariants: no label's value, whatever is in it, starts a new line or a new label; a family is
written once, with its help and its type.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from openclawd.observe.histogram import Histogram

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

OTHER: Final = "(other)"
"""What label values become that would make too many series."""

MAX_SERIES: Final = 2000
"""Of one counter. Labels are configured names and closed lists, so this is for the day when
somebody asks for the thousandth file in `model_paths` by its name."""

Labels = tuple[str, ...]
Sample = tuple[Labels, float]


class Tally:
    """One counter with its labels' values. `add` is a lookup and an addition."""

    def __init__(self, *label_names: str) -> None:
        self.label_names = label_names
        self._values: Counter[Labels] = Counter()

    def add(self, *labels: str, amount: float = 1) -> None:
        if labels not in self._values and len(self._values) >= MAX_SERIES:
            labels = (OTHER,) * len(labels)
        self._values[labels] += amount  # type: ignore[assignment]  # money is a fraction

    def samples(self) -> Iterator[Sample]:
        return iter(self._values.items())


class Exposition:
    """One answer to a scrape, family by family."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def tally(self, name: str, help_text: str, tally: Tally) -> None:
        self.family(name, "counter", help_text, tally.label_names, tally.samples())

    def gauge(self, name: str, help_text: str, value: float | None) -> None:
        """One value without labels; none at all when nobody knows it."""
        if value is not None:
            self.family(name, "gauge", help_text, (), [((), value)])

    def counter(self, name: str, help_text: str, value: float | None) -> None:
        """One sum without labels."""
        if value is not None:
            self.family(name, "counter", help_text, (), [((), value)])

    def family(
        self,
        name: str,
        kind: Literal["counter", "gauge"],
        help_text: str,
        label_names: Labels,
        samples: Iterable[Sample],
    ) -> None:
        """A family without samples is left out."""
        lines = [
            f"{name}{_label_text(label_names, labels)} {_number(value)}\n"
            for labels, value in samples
        ]
        if lines:
            self._lines.append(_head(name, kind, help_text))
            self._lines += lines

    def histograms(
        self,
        name: str,
        help_text: str,
        label_names: Labels,
        samples: Iterable[tuple[Labels, Histogram]],
        *,
        bounds: tuple[float, ...],
    ) -> None:
        """`bounds` are some of `histogram.BOUNDS`."""
        head = _head(name, "histogram", help_text)
        for labels, histogram in samples:
            counts = histogram.cumulative(bounds)
            starts = _bucket_starts(name, label_names, labels, bounds)
            own = _label_text(label_names, labels)
            self._lines.append(head)
            self._lines += [
                f"{start}{count}\n" for start, count in zip(starts, counts, strict=True)
            ]
            self._lines.append(f"{name}_sum{own} {histogram.sum_s:.6f}\n")
            self._lines.append(f"{name}_count{own} {counts[-1]}\n")
            head = ""

    def encode(self) -> bytes:
        return "".join(self._lines).encode(errors="replace")


def _head(name: str, kind: str, help_text: str) -> str:
    return f"# HELP {name} {help_text}\n# TYPE {name} {kind}\n"


@functools.lru_cache(maxsize=8192)
def _label_text(names: Labels, values: Labels) -> str:
    if not names:
        return ""
    pairs = (f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{','.join(pairs)}}}"


@functools.lru_cache(maxsize=2048)
def _bucket_starts(
    name: str, label_names: Labels, labels: Labels, bounds: tuple[float, ...]
) -> list[str]:
    """The lines of a histogram's buckets, up to their numbers."""
    names = (*label_names, "le")
    limits = [f"{bound:g}" for bound in bounds] + ["+Inf"]
    return [f"{name}_bucket{_label_text(names, (*labels, limit))} " for limit in limits]


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(int(value))  # true is 1
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")
