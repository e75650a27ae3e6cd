"""`openclawctl logs`: journalctl, with the filters that find what one looks for.

Owns how options become journalctl's (journalctl(1)) and matches of the journal's fields
(systemd.journal-fields(7)); the daemon's own fields are those of docs/configuration.md, "logging".
Which unit it is follows from the socket, without connecting: that could start the daemon.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from openclawctl import paths
from openclawctl.cli import launch
from openclawctl.cli.daemon import log_file_of
from openclawctl.cli.shell import Shell, json_option, names_of, print_line
from openclawctl.wire.errors import OpenclawError
from openclawctl.wire.units import parse_duration_s

if TYPE_CHECKING:
    from collections.abc import Iterable

_LEVELS: Final = {"error": "err", "warning": "warning", "info": "info", "debug": "debug"}
"""The daemon's names, and journalctl's."""

_SOCKET: Final = re.compile(r"/run/openclawd/([^/]+)\.sock")
_MAIN: Final = "openclawd"
_EVERY_UNIT: Final = "openclawd*.service"
"""All instances, and the processes beside the daemon: fetch, notify, metrics."""

_SYSTEMD: Final = Path("/run/systemd/system")
"""Is there while systemd runs the machine: sd_booted(3)."""


@click.command("logs")
@click.option("--follow", "-f", is_flag=True, help="Go on with what is written from now on.")
@click.option(
    "--since", metavar="TIME", help="The last 90, 30m, 24h …, or what journalctl takes: today …"
)
@click.option("--until", metavar="TIME", help="Only what was written before then.")
@click.option("--lines", "-n", metavar="N", type=click.IntRange(min=0), help="The newest N only.")
@click.option(
    "--level",
    type=click.Choice(list(_LEVELS)),
    help="This and what is worse. Default: all that was written.",
)
@click.option(
    "--request",
    "request_id",
    metavar="ID",
    help="Only of this request.",
    shell_complete=names_of("requests"),
)
@click.option(
    "--model", "-m", metavar="NAME", help="Only of this model.", shell_complete=names_of("models")
)
@click.option(
    "--instance",
    "instances",
    metavar="NAME",
    multiple=True,
    help="Of openclawd@NAME; repeatable. Default: the daemon that the socket belongs to.",
    shell_complete=names_of("instances"),
)
@click.option("--all", "all_units", is_flag=True, help="Of all instances and helper processes.")
@click.option("--explain", "-x", is_flag=True, help="With what each entry means, where known.")
@click.option("--print", "only_print", is_flag=True, help="Print the command, and run nothing.")
@click.argument("arguments", metavar="[-- JOURNALCTL OPTION …]", nargs=-1)
@json_option
@click.pass_obj
def logs_command(
    shell: Shell,
    /,
    *,
    follow: bool,
    since: str | None,
    until: str | None,
    lines: int | None,
    level: str | None,
    request_id: str | None,
    model: str | None,
    instances: tuple[str, ...],
    all_units: bool,
    explain: bool,
    only_print: bool,
    arguments: tuple[str, ...],
) -> None:
    """Show the daemon's log: journalctl with the right filters.

    A request's ID is what `openclawctl requests`, the ledger and --json call request_id. With
    --json an object a line, as journalctl has it. What comes after -- is passed on.

    \b
    Examples:
      openclawctl logs --follow
      openclawctl logs --since 1h --level warning --explain
      openclawctl logs --request 01a20922-d6d6-7088-a77f-7a73e70e37ba
      openclawctl logs --model smollm2 --json | jq -r .MESSAGE
      openclawctl logs --all --since today -- --output=short-iso
    """
    units = [_EVERY_UNIT] if all_units else [f"{_MAIN}@{name}.service" for name in instances]
    command = ["journalctl", *(f"--unit={unit}" for unit in units or [_unit(shell)])]
    for name, value in (("since", since), ("until", until)):
        if value is not None:
            command.append(f"--{name}={_moment(value)}")
    if lines is not None:
        command.append(f"--lines={lines}")
    if level is not None:
        command.append(f"--priority={_LEVELS[level]}")
    switches = {"--follow": follow, "--catalog": explain, "--output=json": shell.is_json}
    command += [switch for switch, is_on in switches.items() if is_on]
    command += arguments
    command += _matches({"REQUEST_ID": request_id, "MODEL": model})
    _run(command, only_print=only_print)


def _moment(text: str) -> str:
    """A duration is so long ago; all else is left to journalctl (systemd.time(7))."""
    try:
        return f"-{parse_duration_s(text):g}s"
    except ValueError:
        return text


def _matches(fields: dict[str, str | None]) -> Iterable[str]:
    """Each must hold, since they are of different fields."""
    return (f"{name}={value}" for name, value in fields.items() if value is not None)


def _unit(shell: Shell) -> str:
    """The unit of the daemon behind the socket. Raises `OpenclawError` for one that is not
    systemd's: its log is elsewhere."""
    path = os.path.abspath(paths.find_socket(shell.socket_path, config=paths.load_config()))
    if match := _SOCKET.fullmatch(path):
        return f"{_MAIN}.service" if match[1] == _MAIN else f"{_MAIN}@{match[1]}.service"
    running = launch.find_running(path)
    if running is None:
        raise OpenclawError(
            f"no daemon listens on {path}, so which log is meant is not known",
            hint="say --instance NAME or --all for the units of systemd; a daemon that "
            "`openclawctl daemon start` has started writes openclawd.log in its state directory",
        )
    if running.unit is not None:
        return running.unit
    file = log_file_of(launch.arguments_of(running.pid))
    raise OpenclawError(
        f"this openclawd (pid {running.pid}) was started by hand, and is not in the journal",
        hint=f"if `openclawctl daemon start` has started it: `tail -F {shlex.quote(str(file))}`; "
        "else its log is where its standard error went, or where `logging` in its configuration "
        "says",
    )


def _run(command: list[str], *, only_print: bool) -> None:
    """In place of this process: Ctrl-C, the pager and the exit status are journalctl's."""
    if only_print:
        print_line(shlex.join(command))
        return
    program = shutil.which(command[0])
    if program is None or not _SYSTEMD.is_dir():
        raise OpenclawError(
            "there is no journal here: "
            + (
                "journalctl is not installed"
                if program is None
                else "systemd does not run this machine"
            ),
            hint="a daemon that was started by hand writes to its standard error, to the file that "
            "`logging` in its configuration names, or, by `openclawctl daemon start`, to "
            "openclawd.log in its state directory",
        )
    os.execv(program, command)
