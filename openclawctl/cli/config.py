"""`openclawctl config check`, `show` and `schema`, which ask the daemon's own program, since that
alone knows the schema; and `reload`."""

from __future__ import annotations

import json
import shlex
import subprocess

import click

from openclawctl.cli.launch import daemon_command_line
from openclawctl.cli.shell import Shell, json_option, print_json, print_line, say
from openclawctl.wire.errors import EXIT_FAILED, OpenclawError


@click.group("config")
def config_command() -> None:
    """Check a configuration of the daemon, or show what holds.

    \b
    Examples:
      openclawctl config check ./openclawd.yaml
      openclawctl config show --origin | grep temperature
      openclawctl config schema > openclawd.schema.json
    """


@config_command.command("check")
@click.argument("file", required=False, type=click.Path())
@json_option
@click.pass_obj
def check_command(shell: Shell, /, file: str | None) -> int:
    """Check FILE, or the configuration that `openclawd` would use. Exits 1 if it is wrong.

    A model's file that is not there is warned of only: it may come later.

    \b
    Examples:
      openclawctl config check
      openclawctl config check ./openclawd.yaml
    """
    answer = _ask("--check-config", file)
    is_valid = answer.returncode == 0
    said = answer.stderr.strip()
    report = answer.stdout.strip() if is_valid else said
    if shell.is_json:
        warnings = said.splitlines() if is_valid else []
        print_json({"valid": is_valid, "file": file, "report": report, "warnings": warnings})
    elif is_valid:
        print_line(report)
        if said:
            say(said)
    else:
        say(report)
    return 0 if is_valid else EXIT_FAILED


@config_command.command("show")
@click.argument("file", required=False, type=click.Path())
@click.option("--origin", is_flag=True, help="Say of each value where it is from.")
@json_option
@click.pass_obj
def show_command(shell: Shell, /, file: str | None, *, origin: bool) -> int:
    """Print what holds by FILE, or by the configuration that `openclawd` would use.

    It is YAML, and can be a configuration file itself: defaults stand behind #. With --origin each
    line ends with the file and line, the option or the variable that its value is from. Exits 1 if
    the configuration is wrong.

    \b
    Examples:
      openclawctl config show
      openclawctl config show --origin /etc/openclawd/openclawd.yaml
      openclawctl config show --json | jq '.settings[] | select(.set)'
    """
    form = "json" if shell.is_json else "origin" if origin else "plain"
    answer = _ask(f"--show-config={form}", file)
    if answer.returncode != 0:
        named = f" {shlex.quote(file)}" if file else ""
        hint = f"see `openclawctl config check{named}`"
        raise OpenclawError(answer.stderr.strip(), hint=hint)
    if shell.is_json:
        print_json(json.loads(answer.stdout))
    else:
        print_line(answer.stdout.rstrip("\n"))
    return 0


@config_command.command("schema")
@json_option
def schema_command() -> None:
    """Print JSON Schema of the configuration, for editors and programs.

    Editors with a YAML language server use it if openclawd.yaml begins with the line
    `# yaml-language-server: $schema=./openclawd.schema.json`.

    \b
    Example:
      openclawctl config schema > openclawd.schema.json
    """
    answer = _ask("--config-schema", None)
    if answer.returncode != 0:
        raise OpenclawError(answer.stderr.strip())
    print_line(answer.stdout.rstrip("\n"))


def _ask(question: str, file: str | None) -> subprocess.CompletedProcess[str]:
    command = [*daemon_command_line(), question, *(["--config", file] if file else [])]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


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
