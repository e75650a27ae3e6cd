"""`openclawctl usage`."""

from __future__ import annotations

from typing import Any

import click

from openclawctl.cli.shell import Shell, json_option, print_json, print_line, print_table
from openclawctl.wire.operations import USAGE_GROUPS
from openclawctl.wire.units import format_duration

_COLUMNS = {
    "REQUESTS": "requests",
    "PROMPT": "prompt_tokens",
    "CACHED": "cached_tokens",
    "COMPLETION": "completion_tokens",
    "CANCELLED": "cancelled",
    "FAILED": "failed",
}


@click.command("usage")
@click.option(
    "--by", type=click.Choice(USAGE_GROUPS), default="model", show_default=True, help="Group by."
)
@click.option("--since", metavar="DURATION", help="Only the last 90, 30m, 24h, 7d … Default: all.")
@json_option
@click.pass_obj
def usage_command(shell: Shell, /, by: str, since: str | None) -> None:
    """Show how many requests and tokens were used, from the daemon's ledger.

    \b
    Examples:
      openclawctl usage --since 24h
      openclawctl usage --by principal --json | jq .total
    """
    with shell.client() as client:
        usage = client.usage(by=by, since=since)
    if shell.is_json:
        print_json(usage)
        return
    rows = usage.get("rows", [])
    if not rows:
        print_line("no requests" + (f" in the last {since}" if since else " yet"))
        return
    lines = [_row(str(row.get("key") or "-"), row) for row in rows]
    if len(rows) > 1:
        lines.append(_row("total", usage.get("total", {})))
    print_table([by.upper(), *_COLUMNS, "TIME"], lines, right=" ".join([*_COLUMNS, "TIME"]))


def _row(key: str, row: dict[str, Any]) -> list[str]:
    counts = [str(row.get(name, 0)) for name in _COLUMNS.values()]
    return [key, *counts, format_duration(row.get("total_s") or 0)]
