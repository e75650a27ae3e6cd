"""`openclawctl health`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import click

from openclawctl.cli.shell import (
    Shell,
    duration_s,
    json_option,
    print_json,
    print_line,
    print_table,
)
from openclawctl.wire.errors import EXIT_FAILED, Denied, OpenclawError
from openclawctl.wire.units import format_duration

if TYPE_CHECKING:
    from openclawctl.client import Client

APP: Final = "openclawctl-health"
"""What the requests of a deep check are for, in `openclawctl usage --by app`."""

_PROMPT: Final = "Hello"


@click.command("health")
@click.option("--deep", is_flag=True, help="Have each loaded model compute something, too.")
@click.option(
    "--deadline",
    "deadline_s",
    metavar="DURATION",
    default="10s",
    show_default=True,
    callback=duration_s,
    help="With --deep: how long each model may take, waiting included.",
)
@json_option
@click.pass_obj
def health_command(shell: Shell, /, *, deep: bool, deadline_s: float) -> int:
    """Say whether tokens are coming, or nothing is asked; and if not, why.

    \b
    Exit status: 0 all is well, 1 something is wrong with the daemon or a model,
    3 the daemon cannot be reached. A deep check has each loaded model compute one
    token (or vector) in your name: it is in your usage, under the application
    openclawctl-health, and waits in line like any other request.
    \b
    Examples:
      openclawctl health && echo "all is well"
      openclawctl health --deep --deadline 30s
    """
    with shell.client() as client:
        status = client.status()
        health = status.get("health", {})
        found = [_ask(client, model, deadline_s) for model in _loaded(status)] if deep else []
    is_well = health.get("status") == "ok" and all(each["ok"] for each in found)
    if shell.is_json:
        print_json({**health, "ok": is_well, **({"models": found} if deep else {})})
    else:
        _print(health, found)
    return 0 if is_well else EXIT_FAILED


def _loaded(status: dict[str, Any]) -> list[dict[str, Any]]:
    return [model for model in status.get("models", []) if model.get("state") == "ready"]


def _ask(client: Client, model: dict[str, Any], deadline_s: float) -> dict[str, Any]:
    """What came of the least that a model can be asked. Raises `Denied`: that says nothing of the
    model."""
    name, start = str(model.get("name")), time.monotonic()
    can_generate = (model.get("info") or {}).get("can_generate", True)
    try:
        if can_generate:
            client.generate(_PROMPT, model=name, max_tokens=1, deadline_s=deadline_s, app=APP)
        else:
            client.embed(_PROMPT, model=name, deadline_s=deadline_s, app=APP)
    except Denied:
        raise
    except OpenclawError as error:
        return {"name": name, "ok": False, "code": error.code, "message": error.message}
    return {"name": name, "ok": True, "total_s": round(time.monotonic() - start, 3)}


def _print(health: dict[str, Any], found: list[dict[str, Any]]) -> None:
    print_line(f"{health.get('status', '?')} (openclawd is {health.get('server', '?')})")
    for reason in health.get("reasons", []):
        print_line(f"  {reason.get('message')}")
    if found:
        print_line()
        rows = [_row(each) for each in found]
        print_table(["MODEL", "ANSWER", "AFTER"], rows, right="AFTER", cut="MODEL ANSWER")


def _row(found: dict[str, Any]) -> list[str]:
    if found["ok"]:
        return [found["name"], "ok", format_duration(found["total_s"])]
    return [found["name"], f"{found['code']}: {found['message']}", "-"]
