"""`openclawctl bench`."""

from __future__ import annotations

import sys
from typing import Any, Final

import click

from openclawctl.cli.shell import (
    MAX_CONCURRENCY,
    Shell,
    json_option,
    model_option,
    print_json,
    print_line,
    print_table,
    say,
)
from openclawctl.wire.units import format_duration


def _concurrency(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
    words = value.split(",")
    if all(word.strip().isdecimal() for word in words):
        numbers = [int(word) for word in words]
        if all(1 <= number <= MAX_CONCURRENCY for number in numbers):
            return numbers
    message = f"{value!r} is not a list of numbers from 1 to {MAX_CONCURRENCY}, such as 1,2,4,8"
    raise click.BadParameter(message, ctx, param)


@click.command("bench")
@click.option(
    "--concurrency",
    metavar="N,…",
    default="1,2,4,8",
    show_default=True,
    callback=_concurrency,
    help="How many requests at once, one after the other.",
)
@click.option(
    "--tokens",
    "max_tokens",
    metavar="N",
    type=click.IntRange(2, 100_000),
    default=64,
    show_default=True,
    help="Completion tokens of each request.",
)
@click.option(
    "--rounds",
    "num_rounds",
    metavar="N",
    type=click.IntRange(1, 1000),
    default=3,
    show_default=True,
    help="Rounds that count, after one to warm up.",
)
@model_option
@json_option
@click.pass_obj
def bench_command(
    shell: Shell,
    /,
    *,
    concurrency: list[int],
    max_tokens: int,
    num_rounds: int,
    model: str | None,
) -> None:
    """Measure how fast the daemon that runs here answers.

    \b
    At each concurrency so many requests begin at the same moment, in rounds: short
    prompts that are all different, greedy answers of a fixed length. Times are
    those that an application sees. TOK/S is the median round, of all requests
    together. FIRST is the time to the first token, NEXT that between tokens, WHOLE
    that of a whole answer: the median, then P99. What disturbed the measurement is
    said at the end; measure again without it.

    The requests are like any others: they are in your usage, under the application
    bench, they wait in line, and your limits and budgets hold for them.

    \b
    Examples:
      openclawctl bench
      openclawctl bench --concurrency 1,16 --tokens 256 --model smollm2
      openclawctl bench --json > before.json
    """
    from openclawctl.cli.measuring import APP, Plan, run

    plan = Plan(model, concurrency, max_tokens, num_rounds)
    client = shell.async_client(app=APP, retries=0)  # what is refused once is not merely slow
    report = run(client, plan, _say_round)
    if shell.is_json:
        print_json(report)
        return
    _print(report)


def _say_round(text: str) -> None:
    if sys.stderr.isatty():
        say(f"openclawctl: {text}")


_HEADER: Final = ["REQUESTS", "TOK/S", "FIRST", "P99", "NEXT", "P99", "WHOLE", "P99"]


def _print(report: dict[str, Any]) -> None:
    answers = f"answers of {report['max_tokens']} tokens, {report['rounds']} rounds"
    print_line(f"{report['model']} on openclawd {report['server']}: {answers}")
    print_line()
    rows = [_row(figures) for figures in report["results"]]
    print_table(_HEADER, rows, right=" ".join(_HEADER))
    for text in report["disturbances"]:
        say(f"openclawctl: warning: {text}")


def _row(figures: dict[str, Any]) -> list[str]:
    times = [
        _time(figures[name][p])
        for name in ("ttft_s", "inter_token_s", "total_s")
        for p in ("p50", "p99")
    ]
    return [str(figures["concurrency"]), f"{figures['tokens_per_s']:.1f}", *times]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.1f}ms" if seconds < 1 else format_duration(seconds)
