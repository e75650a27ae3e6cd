"""`openclawctl usage`: sums of the ledger as a table, JSON, CSV or a chart; requests as they end.

`--follow` asks once a second for what has ended since. So the daemon holds nothing for it, nothing
has to end when the daemon stops, and after a restart it goes on where it was.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from openclawctl.cli.shell import (
    Shell,
    json_option,
    one_line,
    print_json,
    print_json_line,
    print_line,
    print_table,
    say,
    write,
)
from openclawctl.wire.fields import suggestion
from openclawctl.wire.money import format_money
from openclawctl.wire.operations import USAGE_COLUMNS, USAGE_GROUPS
from openclawctl.wire.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from openclawctl.client import Client

FOLLOW_INTERVAL_S: Final = 1.0

_COLUMNS: Final = {
    "REQUESTS": "requests",
    "PROMPT": "prompt_tokens",
    "CACHED": "cached_tokens",
    "COMPLETION": "completion_tokens",
    "CANCELLED": "cancelled",
    "FAILED": "failed",
}
_TIME_GROUPS: Final = frozenset({"DAY", "HOUR"})
"""Of the groups, those that say nothing once they are shortened."""
_RANGE: Final = "90, 30m, 24h, 7d … ago, or 2026-10-25T14:00."


def _groups(ctx: click.Context, param: click.Parameter, value: str) -> list[str]:
    """Names between commas; `user` stands for the principal."""
    names = ["principal" if name == "user" else name for name in value.split(",")]
    for name in names:
        if name not in USAGE_GROUPS:
            allowed = ", ".join(USAGE_GROUPS)
            text = f"{name!r} is none of {allowed}{suggestion(name, USAGE_GROUPS)}"
            raise click.BadParameter(text, ctx, param)
    return names


@click.command("usage")
@click.option(
    "--by",
    default="model",
    show_default=True,
    metavar="NAMES",
    callback=_groups,
    help=f"Group by some of {', '.join(USAGE_GROUPS)}, with commas between them.",
)
@click.option("--since", metavar="TIME", help=f"Only from then on: {_RANGE} Default: all.")
@click.option("--until", metavar="TIME", help="Only what came before then. Default: now.")
@click.option("--sort", metavar="NAME", help="By a group, or by a column of --format csv.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The first N rows only.")
@click.option(
    "--format",
    "style",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
    help="How to print it.",
)
@click.option("--plot", is_flag=True, help="Draw bars of the column that it is sorted by.")
@click.option(
    "--svg",
    metavar="FILE",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write such a chart to a file.",
)
@click.option("--follow", is_flag=True, help="Print each request when it ends, until interrupted.")
@json_option
@click.pass_obj
def usage_command(
    shell: Shell,
    /,
    by: list[str],
    since: str | None,
    until: str | None,
    sort: str | None,
    limit: int | None,
    style: str,
    plot: bool,  # noqa: FBT001 - click's
    svg: Path | None,
    follow: bool,  # noqa: FBT001 - click's
) -> None:
    """Show how many requests and tokens were used, from the daemon's ledger.

    \b
    Examples:
      openclawctl usage --since 24h
      openclawctl usage --by day,model --since 30d --plot
      openclawctl usage --by principal --json | jq .total
      openclawctl usage --follow
    """
    style = "json" if shell.is_json else style
    with shell.client() as client:
        if follow:
            _follow(client, style)
            return
        usage = client.usage(by=by, since=since, until=until, sort=sort, limit=limit)
    column = sort if sort in USAGE_COLUMNS else "completion_tokens"
    if svg is not None:
        _write_svg(svg, usage, column)
    if style == "json":
        print_json(usage)
    elif style == "csv":
        _print_csv(by, usage)
    elif not usage.get("rows"):
        print_line("no requests" + (f" in the last {since}" if since else " yet"))
    elif plot:
        _plot(usage, column)
    else:
        _print_table(by, usage)
    if left_out := usage.get("left_out"):
        say(f"{left_out} more rows are not shown; see --limit")


# ---- how it is printed ----


def _print_table(by: Sequence[str], usage: dict[str, Any]) -> None:
    rows, currency = usage.get("rows", []), usage.get("currency")
    lines = [[*_labels(by, row), *_numbers(row, currency)] for row in rows]
    if len(rows) > 1:
        blanks = [""] * (len(by) - 1)
        lines.append(["total", *blanks, *_numbers(usage.get("total", {}), currency)])
    titles = [*_COLUMNS, *([str(currency)] if currency else []), "TIME"]
    groups = [name.upper() for name in by]
    names = " ".join(name for name in groups if name not in _TIME_GROUPS)
    print_table([*groups, *titles], lines, right=" ".join(titles), cut=names)


def _labels(by: Sequence[str], row: dict[str, Any]) -> list[str]:
    groups = row.get("groups") or {by[0]: row.get("key")}
    return [str(groups.get(name) or "-") for name in by]


def _numbers(row: dict[str, Any], currency: str | None) -> list[str]:
    counts = [str(row.get(name, 0)) for name in _COLUMNS.values()]
    money = [format_money(row.get("cost") or 0)] if currency else []
    return [*counts, *money, format_duration(row.get("total_s") or 0)]


def _print_csv(by: Sequence[str], usage: dict[str, Any]) -> None:
    from openclawctl.cli.sheets import csv_lines

    currency = usage.get("currency")
    rows = [{**row.get("groups", {}), **row, "currency": currency} for row in usage.get("rows", [])]
    for line in csv_lines([*by, *USAGE_COLUMNS, "currency"], rows, header=True):
        write(line)


def _bars(usage: dict[str, Any], column: str) -> Iterator[tuple[str, float, str]]:
    for row in usage.get("rows", []):
        value = row.get(column) or 0
        text = format_money(value) if column == "cost" else f"{value:,g}" if value else "0"
        yield str(row.get("key") or "-"), float(value), text


def _title(usage: dict[str, Any], column: str) -> str:
    unit = f", {usage['currency']}" if column == "cost" and usage.get("currency") else ""
    return f"{column.replace('_', ' ')}{unit} by {usage.get('by', '')}"


def _plot(usage: dict[str, Any], column: str) -> None:
    from openclawctl.cli.render import print_bars

    print_bars(_title(usage, column), list(_bars(usage, column)))


def _write_svg(file: Path, usage: dict[str, Any], column: str) -> None:
    from openclawctl.cli.chart import bar_chart

    try:
        file.write_text(bar_chart(_title(usage, column), list(_bars(usage, column))))
    except OSError as error:
        raise click.UsageError(f"{file} cannot be written: {error.strerror}") from None


# ---- requests as they end ----

_FOLLOWED: Final = (
    "ended_at", "request_id", "principal", "model", "op", "prompt_tokens", "completion_tokens",
    "total_s", "state",
)  # fmt: skip


def _follow(client: Client, style: str) -> None:
    """Print requests that end from now on, one line each."""
    seq = client.usage_rows(limit=1).get("last_seq", 0)
    is_first = True
    while True:
        page = client.usage_rows(after_seq=seq)
        seq = page.get("next_seq", seq)
        for row in page.get("rows", []):
            _print_request(row, style, is_first=is_first)
            is_first = False
        if not page.get("has_more"):
            time.sleep(FOLLOW_INTERVAL_S)


def _print_request(row: dict[str, Any], style: str, *, is_first: bool) -> None:
    if style == "json":
        print_json_line(row)
        return
    if style == "csv":
        from openclawctl.cli.sheets import csv_lines

        for line in csv_lines(list(row), [row], header=is_first):
            write(line)
        return
    ended_at = time.localtime((row.get("arrived_at") or 0) + (row.get("total_s") or 0))
    shown = {**row, "ended_at": time.strftime("%H:%M:%S", ended_at)}
    shown["state"] = row.get("error_code") or row.get("finish_reason") or row.get("state")
    shown["total_s"] = format_duration(row.get("total_s") or 0)
    print_line("  ".join(one_line(str(shown.get(name, "-"))) for name in _FOLLOWED))
