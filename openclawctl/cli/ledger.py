"""`openclawctl ledger`: check, export, prune and back up the daemon's ledger."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from openclawctl.cli.shell import Shell, json_option, print_json, print_line, say, write
from openclawctl.wire.errors import OpenclawError
from openclawctl.wire.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openclawctl.client import Client


@click.group("ledger")
def ledger_command() -> None:
    """Check, export, prune and back up the daemon's ledger.

    \b
    Examples:
      openclawctl ledger check
      openclawctl ledger export --format csv --out usage.csv
      openclawctl ledger backup && openclawctl ledger prune --older-than 90d
    """


@ledger_command.command("check")
@json_option
@click.pass_obj
def check_command(shell: Shell, /) -> int:
    """Look for damage and for rows that do not fit together. Exit status 1 if there are any.

    \b
    Examples:
      openclawctl ledger check
      openclawctl ledger check --json | jq '.findings[]'
    """
    with shell.client() as client:
        report = client.check_ledger()
    findings = report.get("findings", [])
    if shell.is_json:
        print_json(report)
    else:
        for finding in findings:
            print_line(finding)
        size = format_size(report.get("bytes") or 0)
        rows = f"{report.get('rows', 0)} requests, {report.get('open', 0)} of them open, {size}"
        print_line(f"{len(findings)} problems found; {rows}" if findings else f"all well: {rows}")
    return 1 if findings else 0


@ledger_command.command("export")
@click.option(
    "--format",
    "style",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="One JSON object a line, or CSV.",
)
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to a new file, which only you can read. Default: standard output.",
)
@click.option("--after", "after_seq", type=click.IntRange(min=0), default=0, metavar="SEQ",
              help="Only what ended after the request with this settled_seq.")  # fmt: skip
@click.pass_obj
def export_command(shell: Shell, /, style: str, out: Path | None, after_seq: int) -> None:
    """Print every request that has ended, in the order of their ends. No text is in it.

    \b
    Examples:
      openclawctl ledger export --format csv --out usage.csv
      openclawctl ledger export --after 12000 | jq .completion_tokens
    """
    with shell.client() as client:
        lines = _lines(_rows(client, after_seq), style)
        if out is None:
            for line in lines:
                write(line)
            return
        with _new_file(out) as file:
            num_lines = 0
            for line in lines:
                file.write(line)
                num_lines += 1
    say(f"{num_lines} lines written to {out}")


def _rows(client: Client, after_seq: int) -> Iterator[dict[str, Any]]:
    has_more = True
    while has_more:
        page = client.usage_rows(after_seq=after_seq)
        yield from page.get("rows", [])
        has_more, after_seq = page.get("has_more", False), page.get("next_seq", after_seq)


def _lines(rows: Iterator[dict[str, Any]], style: str) -> Iterator[str]:
    if style == "jsonl":
        for row in rows:
            yield json.dumps(row) + "\n"
        return
    from openclawctl.cli.sheets import csv_lines

    is_first = True
    for row in rows:
        yield from csv_lines(list(row), [row], header=is_first)
        is_first = False


def _new_file(path: Path) -> TextIO:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise OpenclawError(f"{path} cannot be created: {error.strerror}") from None
    return open(descriptor, "w", encoding="utf-8")


@ledger_command.command("prune")
@click.option(
    "--older-than", required=True, metavar="DURATION", help="Delete what arrived 90d … ago."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def prune_command(shell: Shell, /, older_than: str, yes: bool) -> None:  # noqa: FBT001 - click's
    """Delete old requests from the ledger and give their space back.

    \b
    Examples:
      openclawctl ledger prune --older-than 90d
      openclawctl ledger prune --older-than 90d --yes
    """
    if not yes and sys.stdin.isatty():
        click.confirm(f"Delete every request older than {older_than}?", abort=True, err=True)
    with shell.client() as client:
        result = client.prune_ledger(older_than)
    if shell.is_json:
        print_json(result)
        return
    before, after = result.get("bytes_before") or 0, result.get("bytes_after") or 0
    sizes = f"{format_size(before)} before, {format_size(after)} now"
    print_line(f"{result.get('rows', 0)} requests deleted; {sizes}")


@ledger_command.command("backup")
@json_option
@click.pass_obj
def backup_command(shell: Shell, /) -> None:
    """Copy the ledger into the folder `backups` of the daemon's state directory.

    \b
    Examples:
      openclawctl ledger backup
      openclawctl ledger backup --json | jq -r .path
    """
    with shell.client() as client:
        result = client.back_up_ledger()
    if shell.is_json:
        print_json(result)
    else:
        print_line(f"{result.get('path', '?')} ({format_size(result.get('bytes') or 0)})")
