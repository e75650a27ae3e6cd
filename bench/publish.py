"""Results as a page shows them: tables in Markdown, plots as SVG.

    python bench/publish.py RESULTS.json …   put them into docs/performance.md and docs/plots/

Owns the layout. `run.py` writes the same beside its results. In the page, what stands between
`<!-- bench NAME -->` and `<!-- end -->` is replaced by the tables of that scenario, or for the
name `targets` by all targets of the scenarios that ran, where those of others stay; the words
around them are written by people. Of several files, the last that has a scenario counts.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from live import ROOT
from measure import number
from plot import svg

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PAGE: Final = ROOT / "docs" / "performance.md"
PLOTS: Final = ROOT / "docs" / "plots"
_REGION: Final = re.compile(r"(<!-- bench (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def cell(value: str | float) -> str:
    """A value of a row, for people."""
    return str(value) if isinstance(value, str | int) else number(value)


def targets(results: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each target of every scenario."""
    return [
        {
            "scenario": name,
            "what": target["name"],
            "measured": target["value"],
            "spread": target["spread"],
            "limit": target["limit"],
            "result": target["result"],
        }
        for name, result in results.items()
        for target in result.get("targets", ())
    ]


def scenarios_of(run: dict[str, Any]) -> dict[str, Any]:
    """The results by scenario, each with a line about the run it comes from."""
    machine, results = run["machine"], {}
    for name, result in run["scenarios"].items():
        line = (
            f"{machine['date']}, commit {machine['commit']}, {machine['cores']} cores of "
            f"{machine['cpu']}, {run['threads']} threads, {run['rounds']} rounds"
        )
        if "seconds" in result:
            line += f"; {result['seconds']:.0f} s, {result['others_cpu_share']:.1%} of the CPU"
            line += " time used by others"
        results[name] = {**result, "run": f"{line}."}
    return results


def write(run: dict[str, Any], folder: Path) -> None:
    """`tables.md` and the plots of a run, into its folder."""
    results = scenarios_of(run)
    parts = ["## Targets", "", markdown(targets(results))]
    for name, result in results.items():
        if "rows" in result:
            parts += [f"## {name}", "", _section(name, result)]
    (folder / "tables.md").write_text("\n".join(parts), encoding="utf-8")
    _write_plots(results, folder)


def markdown(rows: Iterable[dict[str, Any]]) -> str:
    """A table; a column whose first value is a number stands right."""
    lines = []
    for row in rows:
        if not lines:
            lines.append(_line(row))
            marks = ("---" if isinstance(value, str) else "--:" for value in row.values())
            lines.append(_line(marks))
        lines.append(_line(cell(value) for value in row.values()))
    return "\n".join([*lines, ""])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _section(name: str, result: dict[str, Any], plots: str = "") -> str:
    parts = [markdown(result["rows"]), f"{result['run']}\n"]
    parts += [f"{remark}\n" for remark in result["remarks"]]
    parts += [
        f"![{plot['title']}]({plots}{_plot_name(name, place)})\n"
        for place, plot in enumerate(result["plots"])
    ]
    return "\n".join(parts)


def _write_plots(results: dict[str, Any], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, result in results.items():
        for place, plot in enumerate(result.get("plots", ())):
            (folder / _plot_name(name, place)).write_text(svg(plot), encoding="utf-8")


def _plot_name(scenario: str, place: int) -> str:
    return f"{scenario}{place or ''}.svg"


def main(arguments: Sequence[str]) -> int:
    results = {}
    for path in arguments:
        results |= scenarios_of(json.loads(Path(path).read_text(encoding="utf-8")))
    if not results:
        print(__doc__, file=sys.stderr)
        return 2
    _write_plots(results, PLOTS)

    def fill(region: re.Match[str]) -> str:
        name = region[2]
        if name == "targets":
            kept = _rows_of_others(region[0], results)
            return f"{region[1]}{markdown(targets(results))}{kept}{region[3]}"
        if name not in results:
            return region[0]
        return f"{region[1]}{_section(name, results[name], 'plots/')}{region[3]}"

    PAGE.write_text(_REGION.sub(fill, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def _rows_of_others(region: str, results: dict[str, Any]) -> str:
    """The rows of a table of targets that are not of these scenarios."""
    lines = [line for line in region.splitlines() if line.startswith("| ")][2:]
    kept = [line for line in lines if line.split("|")[1].strip() not in results]
    return "".join(f"{line}\n" for line in kept)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
