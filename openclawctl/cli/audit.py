"""`openclawctl audit` and `openclawctl audit verify`."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

import click

from openclawctl.cli.shell import (
    Shell,
    json_option,
    names_of,
    print_json,
    print_line,
    print_table,
    say,
)
from openclawctl.wire.errors import EXIT_FAILED
from openclawctl.wire.operations import DEFAULT_AUDIT_ROWS, MAX_AUDIT_ROWS

if TYPE_CHECKING:
    from openclawctl.client import Client

FOLLOW_INTERVAL_S: Final = 1.0
"""How often `--follow` asks for more. The daemon writes refusals by the minute anyway."""

_HEADER = ["ROW", "TIME", "PRINCIPAL", "ACTION", "MODEL", "CODE", "TOKENS", "DETAIL"]


@click.group("audit", invoke_without_command=True)
@click.option("--since", metavar="DURATION", help="Only the last 90, 30m, 24h, 7d … Default: all.")
@click.option(
    "--principal",
    metavar="NAME",
    help="Only what this one did, such as user:alice.",
    shell_complete=names_of("principals"),
)
@click.option("--action", metavar="NAME", help="Only this: chat, refused, load, config …")
@click.option(
    "--limit",
    type=click.IntRange(1, MAX_AUDIT_ROWS),
    default=DEFAULT_AUDIT_ROWS,
    show_default=True,
    help="The newest so many.",
)
@click.option("--follow", is_flag=True, help="Go on with what is written from now on.")
@json_option
@click.pass_context
def audit_command(ctx: click.Context, /, *, follow: bool, **wanted: Any) -> None:
    """Show who did or was refused what, from the daemon's audit.

    \b
    Examples:
      openclawctl audit --since 1h --principal user:alice
      openclawctl audit --action refused --json | jq .rows
      openclawctl audit verify
    """
    if ctx.invoked_subcommand is not None:
        return
    shell = ctx.ensure_object(Shell)
    with shell.client() as client:
        answer = client.audit(**wanted)
        if follow:
            _follow(shell, client, answer, wanted)
        elif shell.is_json:
            print_json(answer)
        else:
            _print_rows(answer.get("rows", []))


def _print_rows(rows: list[dict[str, Any]]) -> None:
    if rows:
        lines = [_cells(row) for row in rows]
        print_table(_HEADER, lines, right="ROW TOKENS", cut="PRINCIPAL MODEL DETAIL")
    else:
        print_line("no such rows")


def _follow(shell: Shell, client: Client, answer: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Until Ctrl-C. With --json one object a line, as they come."""
    filters = {"principal": wanted["principal"], "action": wanted["action"]}
    after_seq = _seq_of(answer)
    while True:
        for row in answer.get("rows", []):
            after_seq = max(after_seq, row.get("seq", 0))
            line = json.dumps(row) if shell.is_json else "  ".join(_cells(row)).rstrip()
            print_line(line)
        time.sleep(FOLLOW_INTERVAL_S)
        answer = client.audit(after_seq=after_seq, limit=MAX_AUDIT_ROWS, **filters)


def _seq_of(answer: dict[str, Any]) -> int:
    """The last row there is, whether or not it was asked for."""
    seq = str(answer.get("head", "")).partition(":")[0]
    return int(seq) if seq.isdecimal() else 0


def _cells(row: dict[str, Any]) -> list[str]:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.get("at", 0)))
    names = [str(row.get(name) or "-") for name in ("principal", "action", "model", "code")]
    detail = json.dumps(row["detail"]) if row.get("detail") else ""
    return [str(row.get("seq", "?")), at, *names, str(row.get("tokens", 0)), detail]


@audit_command.command("verify")
@click.option("--head", metavar="SEQ:MAC", help="An end of the audit that the journal tells of.")
@json_option
@click.pass_obj
def verify_command(shell: Shell, /, head: str | None) -> int:
    """Check that no row of the audit was changed, removed or cut off.

    Exit status 1, with the first row that is wrong, when it is not as it was written.
    A database that was put back as a whole is found with --head only.

    \b
    Examples:
      openclawctl audit verify
      journalctl -u openclawd MESSAGE_ID=2e9a6c4f7b1d4830a5f2c8e0937d6b14 -o cat
      openclawctl audit verify --head 12000:6b1f…
    """
    with shell.client() as client:
        verdict = client.audit_verify(head=head)
    if shell.is_json:
        print_json(verdict)
    elif verdict.get("valid"):
        print_line(f"{verdict.get('rows', 0)} rows are as they were written")
        print_line(f"head: {verdict.get('head', '?')}")
    else:
        print_line(f"row {verdict.get('bad_seq', '?')}: {verdict.get('problem', '?')}")
    if "the given head" in verdict.get("too_old", []):
        say("the given head is of rows that were pruned; it could not be compared")
    return 0 if verdict.get("valid") else EXIT_FAILED
