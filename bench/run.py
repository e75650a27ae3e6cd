"""`make bench`: run the scenarios, print a table for each, keep everything as JSON.

    python bench/run.py                       all of them, some minutes
    python bench/run.py --quick               fewer rounds and samples
    python bench/run.py --only single_stream  one of them; may be repeated
    python bench/run.py --wait-quiet 300      wait for a calm machine, up to 300 s a round

Results go to a folder of their own in bench/results/: every measurement as JSON, tables.md, and the
plots. A missed target is printed as MISS and does not change the exit status: a busy machine must
not fail a build. What the figures mean: docs/performance.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import publish
from children import ChildFailed
from live import BENCH, stop_on_sigterm
from machine import DISTURBED_SHARE, CpuWatch, describe_machine, wait_quiet
from measure import Report, Settings
from peers import CannotBuild
from rich.console import Console
from rich.table import Table

from openclawctl import OpenclawError

if TYPE_CHECKING:
    from collections.abc import Sequence

SCENARIOS: Final = (
    "single_stream",
    "streams",
    "shared_prompt",
    "long_prompt",
    "interactive",
    "fairness",
    "schema",
    "speculation",
    "open_loop",
    "footprint",
    "residency",
    "status_latency",
    "cli_startup",
    "idle",
    "ttft",
    "overhead",
    "step_profile",
    "batch_shapes",
    "ledger",
    "admission",
    "encoders",
    "scrape",
    "torch_batch",
    "torch_engine",
    "torch_chats",
)
ROUNDS: Final = 5
QUICK_ROUNDS: Final = 3
THREADS: Final = 2
WIDTH_WITHOUT_TERMINAL: Final = 120

console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    calm = Calm(limit_s=options.wait_quiet)
    settings = Settings(rounds, options.threads, options.quick, calm.before_round, calm.after_round)
    stop_on_sigterm()
    machine = describe_machine()
    _print_machine(machine)
    results: dict[str, Any] = {}
    failures = 0
    try:
        for name in options.only or SCENARIOS:
            results[name] = _run_one(name, settings, calm)
            failures += "error" in results[name]
    except KeyboardInterrupt:
        console.print("interrupted; what was measured is kept")
        return 130
    finally:
        _save(
            {"machine": machine, "rounds": rounds, "threads": options.threads, "scenarios": results}
        )
    _print_targets(results)
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench/run.py", description="Measure openclawd.")
    parser.add_argument("--only", action="append", choices=SCENARIOS, metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and samples")
    parser.add_argument("--threads", type=int, default=THREADS, help="compute threads of each side")
    parser.add_argument("--rounds", type=int, help=f"rounds of each comparison (default {ROUNDS})")
    parser.add_argument("--wait-quiet", type=float, default=0, metavar="SECONDS")
    return parser


class Calm:
    """Waits for a calm machine before each round, and notes the share of the CPU time that others
    used in it."""

    def __init__(self, *, limit_s: float) -> None:
        self._limit_s = limit_s
        self._watch = CpuWatch()
        self._shares: list[float] = []

    def before_round(self) -> None:
        wait_quiet(limit_s=self._limit_s)
        self._watch = CpuWatch()

    def after_round(self) -> None:
        self._shares.append(self._watch.others_share())

    def take_shares(self) -> list[float]:
        """Of the rounds since the last call."""
        shares, self._shares = self._shares, []
        return shares


def _run_one(name: str, settings: Settings, calm: Calm) -> dict[str, Any]:
    """Measure and print one scenario; one that fails does not keep the others from running."""
    scenario = importlib.import_module(f"scenarios.{name}")
    calm.before_round()
    calm.take_shares()
    watch, started = CpuWatch(), time.monotonic()
    try:
        report: Report = scenario.run(settings)
    except (AssertionError, CannotBuild, ChildFailed, OpenclawError, OSError) as error:
        console.print(f"\n[bold]{name}[/] failed: {error}", style="red")
        return {"error": str(error)}
    others, seconds = watch.others_share(), time.monotonic() - started
    shares = calm.take_shares()
    _print_report(name, scenario.__doc__ or "", report)
    console.print(f"took {seconds:.0f} s", style="dim", end="")
    _print_disturbance(others, shares)
    return {
        "rows": report.rows,
        "targets": [target.as_dict() for target in report.targets],
        "samples": report.samples,
        "remarks": report.remarks,
        "plots": [plot.as_dict() for plot in report.plots],
        "seconds": seconds,
        "others_cpu_share": others,
        "others_cpu_share_of_rounds": shares,
        "load_average": os.getloadavg(),
    }


def _save(results: dict[str, Any]) -> None:
    folder = BENCH / "results" / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    publish.write(results, folder)
    console.print(f"\nevery measurement: {folder.relative_to(BENCH.parent)}", style="dim")


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
        table.add_row(*(publish.cell(value) for value in row.values()))
    console.print(f"\n[bold]{name}[/]: {story.splitlines()[0]}")
    console.print(table)
    for remark in report.remarks:
        console.print(remark)


def _print_disturbance(share: float, shares: Sequence[float]) -> None:
    disturbed = sum(each >= DISTURBED_SHARE for each in shares)
    if disturbed or share >= DISTURBED_SHARE:
        console.print(
            f"; DISTURBED: other processes used {share:.0%} of the machine's CPU time, "
            f"{disturbed} of {len(shares)} rounds were disturbed",
            style="yellow",
        )
    else:
        console.print(f"; other processes used {share:.1%} of the machine's CPU time", style="dim")


def _print_targets(results: dict[str, Any]) -> None:
    table = Table()
    for column in ("scenario", "what", "measured", "spread", "limit", "result"):
        table.add_column(column)
    for row in publish.targets(results):
        *cells, verdict = map(publish.cell, row.values())
        table.add_row(*cells, verdict, style="red" if verdict == "MISS" else "green")
    if table.row_count:
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())
