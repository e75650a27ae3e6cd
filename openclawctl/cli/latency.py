"""The table of `openclawctl status --latency`."""

from __future__ import annotations

from typing import Any, Final

from openclawctl.cli.shell import print_line, print_table
from openclawctl.wire.units import format_duration

_TIMES: Final = (
    ("ttft", "to first token"),
    ("inter_token", "between tokens"),
    ("total", "in all"),
)
_PERCENTILES: Final = ("mean", "p50", "p90", "p99")
_HEADER: Final = ("MODEL", "TIME", "COUNT", "MEAN", "P50", "P90", "P99")


def print_latency(models: list[dict[str, Any]]) -> None:
    """Of the last minutes, then since the daemon's start."""
    used = [model for model in models if model.get("latency")]
    if not used:
        print_line("no request has ended since the daemon's start")
        return
    window = format_duration(used[0]["latency"].get("window_s", 0))
    for since, title in (("recent", f"last {window}"), ("all", "since the start")):
        rows = [row for model in used for row in _rows(model, since)]
        print_line(f"{title}:")
        print_table(_HEADER, rows, right=" ".join(_HEADER[2:]), cut="MODEL")
        print_line()
    error = used[0]["latency"].get("relative_error", 0)
    print_line(f"Means are exact; percentiles are within {error:.1%}.")


def _rows(model: dict[str, Any], since: str) -> list[list[str]]:
    return [
        [str(model.get("name", "?")), title, *_cells(model["latency"].get(name, {}).get(since, {}))]
        for name, title in _TIMES
    ]


def _cells(summary: dict[str, Any]) -> list[str]:
    values = [summary.get(f"{name}_s") for name in _PERCENTILES]
    return [str(summary.get("count", 0)), *map(_time, values)]


def _time(seconds: float | None) -> str:
    """With three digits below a second: tokens are milliseconds apart."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.3g}ms" if seconds < 1 else format_duration(seconds)
