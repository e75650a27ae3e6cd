"""`openclawctl drain` and `resume`: let the daemon finish what it has, and take nothing new."""

from __future__ import annotations

from typing import Any

import click

from openclawctl.cli.answer import Progress
from openclawctl.cli.shell import Shell, json_option, print_json, print_line, say
from openclawctl.wire.errors import EXIT_FAILED, EXIT_INTERRUPTED


@click.command("drain")
@click.option("--wait", "-w", is_flag=True, help="Return when no request is open any more.")
@json_option
@click.pass_obj
def drain_command(shell: Shell, /, *, wait: bool) -> int:
    """Have the daemon take no new requests, for maintenance.

    Those that it has, running or waiting, are finished. New ones are refused as `draining`, with
    exit status 6, until `openclawctl resume` or a restart; `status` and `health` say so.

    \b
    Examples:
      openclawctl drain --wait && systemctl restart openclawd
      openclawctl --timeout 600 drain --wait
      openclawctl resume
    """
    with shell.client() as client, Progress() as progress:
        try:
            done = client.drain(wait=wait, on_progress=lambda num: _tell(progress, num))
        except KeyboardInterrupt:
            progress.stop()
            say("openclawctl: it goes on draining; `openclawctl resume` ends that")
            return EXIT_INTERRUPTED
    if shell.is_json:
        print_json(done)
    else:
        print_line(_sentence(done))
    return EXIT_FAILED if wait and done.get("state") != "drained" else 0


def _tell(progress: Progress, num_open: int) -> None:
    progress.show(f"draining, {num_open} open", None)


def _sentence(done: dict[str, Any]) -> str:
    match done.get("state"):
        case "drained":
            return "drained: no request is open, and no new ones are taken"
        case "draining":
            return f"draining: {done.get('open', '?')} requests are open, and no new ones are taken"
        case _:
            return "somebody has resumed meanwhile: new requests are taken again"


@click.command("resume")
@json_option
@click.pass_obj
def resume_command(shell: Shell, /) -> None:
    """Have the daemon take requests again after `openclawctl drain`.

    \b
    Example:
      openclawctl resume
    """
    with shell.client() as client:
        done = client.resume()
    if shell.is_json:
        print_json(done)
    else:
        print_line(f"openclawd is {done.get('state', '?')}")
