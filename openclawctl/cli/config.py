"""`openclawctl config check`, which asks the daemon's own program, since that alone knows the
schema; and `reload`."""

from __future__ import annotations

import subprocess

import click

from openclawctl.cli.launch import daemon_command_line
from openclawctl.cli.shell import Shell, json_option, print_json, print_line, say


@click.group("config")
def config_command() -> None:
    """Check a configuration of the daemon."""


@config_command.command("check")
@click.argument("file", required=False, type=click.Path())
@json_option
@click.pass_obj
def check_command(shell: Shell, /, file: str | None) -> int:
    """Check FILE, or the configuration that `openclawd` would use. Exits 1 if it is wrong."""
    command = [*daemon_command_line(), "--check-config", *(["--config", file] if file else [])]
    answer = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    is_valid = answer.returncode == 0
    report = (answer.stdout if is_valid else answer.stderr).strip()
    if shell.is_json:
        print_json({"valid": is_valid, "file": file, "report": report})
    elif is_valid:
        print_line(report)
    else:
        say(report)
    return 0 if is_valid else 1


@click.command("reload")
@json_option
@click.pass_obj
def reload_command(shell: Shell, /) -> None:
    """Have the daemon read its configuration again, without ending a request.

    New models appear, removed ones go once their requests have ended, changed ones are replaced
    when the new one is ready. A configuration that is wrong changes nothing: its mistakes are told,
    and the exit status is 2. The log file is opened anew.

    \b
    Examples:
      openclawctl config check && openclawctl reload
      openclawctl reload && openclawctl ps
    """
    with shell.client() as client:
        result = client.reload()
    for warning in result.get("warnings") or []:
        say(f"openclawctl: warning: {warning}")
    if shell.is_json:
        print_json(result)
        return
    told = [
        f"{what} {', '.join(result[what])}"
        for what in ("added", "changed", "removed")
        if result.get(what)
    ]
    print_line("the configuration is applied; models: " + ("; ".join(told) or "as before"))
