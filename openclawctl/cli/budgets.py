"""`openclawctl budgets`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from openclawctl.cli.shell import Shell, json_option, print_json, print_line, print_table
from openclawctl.wire.money import format_money

if TYPE_CHECKING:
    from collections.abc import Callable

_NUMBERS: Final = ("USED", "RESERVED", "LEFT", "LIMIT")
MEASURES: Final[dict[str, Callable[[int], str]]] = {"tokens": str, "money": format_money}
"""What a budget counts in, and how to write it."""


@click.command("budgets")
@json_option
@click.pass_obj
def budgets_command(shell: Shell, /) -> None:
    """Show what is used and left of your budgets, or of everybody's if you may see them.

    FORECAST is what will be used by the reset if it goes on as in this window so far.

    \b
    Examples:
      openclawctl budgets
      openclawctl budgets --json | jq '.budgets[] | select(.tokens.left == 0)'
    """
    with shell.client() as client:
        budgets = client.budgets()
    if shell.is_json:
        print_json({"budgets": budgets})
        return
    lines = [
        _line(row, row[measure], shown, unit="" if measure == "tokens" else "money")
        for row in budgets
        for measure, shown in MEASURES.items()
        if isinstance(row.get(measure), dict)
    ]
    if not lines:
        print_line("no budgets")
        return
    header = ["NAME", "FOR", *_NUMBERS, "RESETS", "FORECAST"]
    print_table(header, lines, right=" ".join(_NUMBERS), cut="NAME FOR")


def _line(
    row: dict[str, Any], counts: dict[str, Any], shown: Callable[[int], str], *, unit: str
) -> list[str]:
    name = " ".join(filter(None, [str(row.get("name", "")), unit and f"({unit})"]))
    numbers = [shown(counts.get(column.lower()) or 0) for column in _NUMBERS]
    bucket = str(row.get("bucket") or (_whose(row) if row.get("per") == "all" else "-"))
    resets = time_text(row.get("resets_at")) or "never"
    return [name, bucket, *numbers, resets, _forecast(counts, shown)]


def _whose(row: dict[str, Any]) -> str:
    """Of a budget with one count for all whom it concerns, who these are."""
    match = row.get("match") or {}
    return ", ".join(f"{name} {'|'.join(match[name])}" for name in match) or "everybody"


def _forecast(counts: dict[str, Any], shown: Callable[[int], str]) -> str:
    if counts.get("forecast") is None:
        return "-"
    used_up = time_text(counts.get("used_up_at"))
    return shown(counts["forecast"]) + (f", used up {used_up}" if used_up else "")


def time_text(moment: float | None) -> str:
    """In the reader's own time zone; JSON has Unix seconds."""
    import datetime as dt  # here: it is slow to import

    if moment is None:
        return ""
    return dt.datetime.fromtimestamp(moment).astimezone().strftime("%Y-%m-%d %H:%M")
