"""`openclawctl requests` and `requests cancel`: what runs and waits, and ending one of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import click

from openclawctl.cli.shell import (
    Shell,
    json_option,
    names_of,
    print_json,
    print_json_line,
    print_line,
    print_table,
    show_again,
)
from openclawctl.wire.units import format_duration

if TYPE_CHECKING:
    from openclawctl.client import Client

FOLLOW_INTERVAL_S: Final = 1.0
"""How often `--follow` asks: fast enough for people, and next to nothing for the daemon."""

_HEADER: Final = ["ID", "PRINCIPAL", "APP", "MODEL", "STATE", "PLACE", "WAIT", "TOKENS", "AGE"]
_NUMBERS: Final = "PLACE WAIT TOKENS AGE"


@click.group("requests", invoke_without_command=True)
@click.option("--follow", "-f", is_flag=True, help="Show them again every second, until Ctrl-C.")
@json_option
@click.pass_context
def requests_command(ctx: click.Context, /, *, follow: bool) -> None:
    """List the requests that are running or waiting, the oldest first.

    They are your own, or everybody's if you may see them. STATE is loading (it waits for its
    model), preparing, queued or running. PLACE 1 is next, and WAIT about how long that will be;
    TOKENS are those that have come, of those that may.

    \b
    Examples:
      openclawctl requests
      openclawctl requests --follow
      openclawctl requests --json | jq -r '.open[] | select(.state == "queued").request_id'
      openclawctl requests cancel 01a20922-d6d6-7088-a77f-7a73e70e37ba
    """
    if ctx.invoked_subcommand is not None:
        return
    shell = ctx.ensure_object(Shell)
    with shell.client() as client:
        if not follow:
            _show(shell, open_requests(client))
            return
        try:
            _follow(shell, client)
        except KeyboardInterrupt:
            return


def open_requests(client: Client) -> dict[str, Any]:
    """The `open` requests, and how many were `left_out` because there are too many."""
    requests = client.status(requests=True).get("requests", {})
    return {"open": requests.get("open", []), "left_out": requests.get("left_out", 0)}


def _follow(shell: Shell, client: Client) -> None:
    while True:
        found = open_requests(client)
        if shell.is_json:
            print_json_line(found)
        else:
            with show_again():
                _print(found)
        time.sleep(FOLLOW_INTERVAL_S)


def _show(shell: Shell, found: dict[str, Any]) -> None:
    if shell.is_json:
        print_json(found)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    if not found["open"]:
        print_line("no open requests")
        return
    rows = [_row(request) for request in found["open"]]
    print_table(_HEADER, rows, right=_NUMBERS, cut="PRINCIPAL APP MODEL")
    if found["left_out"]:
        print_line(f"and {found['left_out']} more")


def _row(request: dict[str, Any]) -> list[str]:
    names = ("request_id", "principal", "app", "model", "state")
    position, eta_s = request.get("position"), request.get("eta_s")
    return [
        *(str(request.get(name) or "-") for name in names),
        "-" if position is None else str(position),
        "-" if eta_s is None else format_duration(eta_s),
        tokens_of(request),
        format_duration(request.get("age_s", 0)),
    ]


def tokens_of(request: dict[str, Any]) -> str:
    """The completion tokens so far, of the most that may come."""
    if request.get("state") != "running" or not request.get("max_tokens"):
        return "-"
    return f"{request.get('completion_tokens', 0)}/{request['max_tokens']}"


@requests_command.command("cancel")
@click.argument("request_id", metavar="ID", shell_complete=names_of("requests"))
@json_option
@click.pass_obj
def cancel_command(shell: Shell, /, request_id: str) -> None:
    """End the request ID, as if its own client had cancelled it.

    Whoever waits for it gets what there is of its answer. Your own requests, or anybody's if you
    may see them; what was computed is in the usage of who asked.

    \b
    Example:
      openclawctl requests cancel 01a20922-d6d6-7088-a77f-7a73e70e37ba
    """
    with shell.client() as client:
        ended = client.cancel_request(request_id)
    if shell.is_json:
        print_json(ended)
        return
    print_line(
        f"{ended.get('request_id', request_id)} of {ended.get('principal', '?')} is cancelled; it "
        f"was {ended.get('state', '?')}, with {ended.get('completion_tokens', 0)} tokens"
    )
