"""`make bench`: run the scenarios, print a table for each, keep everything as JSON.

    python bench/run.py                       all of them, some minutes
    python bench/run.py --quick               fewer rounds and samples
    python bench/run.py --only single_stream  one of them; may be repeated
    python bench/run.py --wait-quiet 300      wait for a calm machine, up to 300 s a round

Results go to bench/results/. A missed target is printed as MISS and does not change the exit
status: a busy machine must not fail a build. What the figures mean: docs/performance.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from children import ChildFailed
from live import BENCH, stop_on_sigterm
from machine import DISTURBED_SHARE, CpuWatch, describe_machine, wait_quiet
from measure import Report, Settings
from rich.console import Console
from rich.table import Table

from openclawctl import OpenclawError

if TYPE_CHECKING:
    from collections.abc import Sequence

SCENARIOS: Final = (
    "single_stream",
    "streams",
    "status_latency",
    "cli_startup",
    "idle",
    "ttft",
    "overhead",
)
ROUNDS: Final = 5
QUICK_ROUNDS: Final = 3
WIDTH_WITHOUT_TERMINAL: Final = 120

console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    limit_s = options.wait_quiet
    settings = Settings(rounds, options.quick, lambda: wait_quiet(limit_s=limit_s))
    stop_on_sigterm()
    machine = describe_machine()
    _print_machine(machine)
    results: dict[str, Any] = {}
    failures = 0
    try:
        for name in options.only or SCENARIOS:
            settings.before_round()
            results[name] = _run_one(name, settings)
            failures += "error" in results[name]
    except KeyboardInterrupt:
        console.print("interrupted; what was measured is kept")
        return 130
    finally:
        _save({"machine": machine, "rounds": rounds, "scenarios": results})
    _print_targets(results)
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench/run.py", description="Measure openclawd.")
    parser.add_argument("--only", action="append", choices=SCENARIOS, metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and samples")
    parser.add_argument("--rounds", type=int, help=f"rounds of each comparison (default {ROUNDS})")
    parser.add_argument("--wait-quiet", type=float, default=0, metavar="SECONDS")
    return parser


def _run_one(name: str, settings: Settings) -> dict[str, Any]:
    """Measure and print one scenario; one that fails does not keep the others from running."""
    scenario = importlib.import_module(f"scenarios.{name}")
    watch, started = CpuWatch(), time.monotonic()
    try:
        report: Report = scenario.run(settings)
    except (AssertionError, ChildFailed, OpenclawError, OSError) as error:
        console.print(f"\n[bold]{name}[/] failed: {error}", style="red")
        return {"error": str(error)}
    others = watch.others_share()
    _print_report(name, scenario.__doc__ or "", report)
    console.print(f"took {time.monotonic() - started:.0f} s", style="dim", end="")
    _print_disturbance(others)
    return {
        "rows": report.rows,
        "targets": [target.as_dict() for target in report.targets],
        "samples": report.samples,
        "others_cpu_share": others,
        "load_average": os.getloadavg(),
    }


def _save(results: dict[str, Any]) -> None:
    folder = BENCH / "results"
    folder.mkdir(exist_ok=True)
    path = folder / time.strftime("%Y%m%d-%H%M%S.json")
    path.write_text(json.dumps(results, indent=1))
    console.print(f"\nevery measurement: {path.relative_to(BENCH.parent)}", style="dim")


# ---- what is printed ----


def _print_machine(machine: dict[str, Any]) -> None:
    console.print(
        f"{machine['cores']} cores of {machine['cpu']}, Linux {machine['kernel']}, Python "
        f"{machine['python']}, llama-cpp-python {machine['llama_cpp_python']}, commit "
        f"{machine['commit']}, load {machine['load_average'][0]:.2f}"
    )


def _print_report(name: str, story: str, report: Report) -> None:
    table = Table()
    for column, value in report.rows[0].items():
        table.add_column(column, justify="left" if isinstance(value, str) else "right")
    for row in report.rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console.print(f"\n[bold]{name}[/]: {story.splitlines()[0]}")
    console.print(table)
    for remark in report.remarks:
        console.print(remark)


def _cell(value: str | float) -> str:
    if isinstance(value, str | int):
        return str(value)
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _print_disturbance(share: float) -> None:
    if share >= DISTURBED_SHARE:
        console.print(
            f"; DISTURBED: other processes used {share:.0%} of the machine's CPU time",
            style="yellow",
        )
    else:
        console.print(f"; other processes used {share:.1%} of the machine's CPU time", style="dim")


def _print_targets(results: dict[str, Any]) -> None:
    table = Table()
    for column in ("scenario", "what", "measured", "limit", "result"):
        table.add_column(column)
    for name, result in results.items():
        for target in result.get("targets", []):
            colour = "green" if target["result"] == "PASS" else "red"
            table.add_row(
                name,
                target["name"],
                _cell(target["value"]),
                target["limit"],
                f"[{colour}]{target['result']}[/]",
            )
    if table.row_count:
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())
