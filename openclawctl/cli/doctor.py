"""`openclawctl doctor`."""

from __future__ import annotations

import os
import textwrap
from typing import TYPE_CHECKING, Final

import click

from openclawctl import paths
from openclawctl.cli.diagnosis import FAILED, Subject, diagnose
from openclawctl.cli.shell import Shell, json_option, print_json, print_line
from openclawctl.wire.errors import EXIT_FAILED

if TYPE_CHECKING:
    from openclawctl.cli.diagnosis import Finding

_INDENT: Final = 22
_WIDTH: Final = 100


@click.command("doctor")
@click.option("--config", metavar="FILE", type=click.Path(), help="The daemon's configuration.")
@click.option("--state-dir", metavar="DIR", type=click.Path(), help="The daemon's state directory.")
@click.option(
    "--metrics-port",
    metavar="PORT",
    type=click.IntRange(1, 65535),
    help="The port of openclawd-metrics. Default: 9867.",
)
@json_option
@click.pass_obj
def doctor_command(
    shell: Shell, /, config: str | None, state_dir: str | None, metrics_port: int | None
) -> int:
    """Look for what is wrong with openclawd on this machine, and say what to do about it.

    \b
    It looks at the unit, the socket and who may use it, the configuration, the
    models' files, the state directory and its disk, the ledger, the clock, the
    memory, llama.cpp and the CPU, the NVIDIA driver and its device nodes, and the
    port of openclawd-metrics. Root sees most: what the daemon needs is then looked
    at as the daemon's user. Nothing is changed.
    \b
    Exit status: 0 nothing keeps it from working, 1 something does.
    \b
    Examples:
      sudo openclawctl doctor
      openclawctl doctor --json | jq '.findings[] | select(.state == "failed")'
      openclawctl --socket ./d.sock doctor --config ./openclawd.yaml --state-dir ./state
    """
    path = os.path.abspath(paths.find_socket(shell.socket_path, config=paths.load_config()))
    options = {"--config": config, "--state-dir": state_dir}
    arguments = [word for name, value in options.items() if value for word in (name, value)]
    findings = diagnose(Subject(path, arguments, metrics_port, shell.api_key_file))
    num_failed = sum(finding.state == FAILED for finding in findings)
    if shell.is_json:
        print_json({"ok": not num_failed, "findings": [each._asdict() for each in findings]})
    else:
        for finding in findings:
            _print(finding)
    return EXIT_FAILED if num_failed else 0


def _print(finding: Finding) -> None:
    head = f"{finding.state:<8} {finding.check:<12} "
    print_line(_wrapped(finding.message, first=head))
    if finding.remedy:
        print_line(_wrapped(finding.remedy, first=" " * _INDENT + "do: "))


def _wrapped(text: str, *, first: str) -> str:
    """Commands and paths in it can be copied: no word is broken."""
    return textwrap.fill(
        text,
        width=_WIDTH,
        initial_indent=first,
        subsequent_indent=" " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
