"""`openclawctl models` (`ls`), `load` and `unload`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from openclawctl.cli.answer import Progress
from openclawctl.cli.residents import print_memory
from openclawctl.cli.shell import Shell, json_option, print_json, print_line, print_table
from openclawctl.wire.messages import Event
from openclawctl.wire.units import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Callable


@click.command("models")
@json_option
@click.pass_obj
def models_command(shell: Shell, /) -> None:
    """List every model that the daemon knows, loaded or not."""
    with shell.client() as client:
        models = client.models()
    if shell.is_json:
        print_json({"models": models})
        return
    header = ["NAME", "STATE", "PARAMETERS", "SIZE", "CONTEXT", "ALIASES", "DESCRIPTION"]
    print_table(header, [_model_row(model) for model in models], right="PARAMETERS SIZE CONTEXT")


def _model_row(model: dict[str, Any]) -> list[str]:
    info = model.get("info") or {}
    name = str(model.get("name", "?")) + (" (default)" if model.get("default") else "")
    return [
        name,
        str(model.get("state", "?")),
        _count(info.get("parameters")),
        format_size(info["size_bytes"]) if info.get("size_bytes") else "-",
        str(model.get("context") or "-"),
        ", ".join(model.get("aliases") or []) or "-",
        str(model.get("reason") or info.get("description") or ""),
    ]


def _count(number: float | None) -> str:
    """`135M`, `7.2B`: as model names give their parameters."""
    if not number:
        return "-"
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            digits = 0 if number >= 100 * size else 1
            return f"{number / size:.{digits}f}{unit}"
    return str(int(number))


@click.command("load")
@click.argument("model", required=False)
@click.option("--dry-run", is_flag=True, help="Load nothing; show the memory that it would take.")
@json_option
@click.pass_obj
def load_command(shell: Shell, /, model: str | None, *, dry_run: bool) -> None:
    """Load MODEL (default: the default model) and wait until it is ready.

    MODEL is a name that `openclawctl models` lists, never a path. Models that were not used for
    longest make way for it if there is not enough memory (`resource_limits.memory`).

    \b
    Examples:
      openclawctl load smollm2
      openclawctl load --dry-run smollm2
    """
    if dry_run:
        with shell.client() as client:
            print_memory(shell, client.show(model))
        return
    start = time.monotonic()
    with Progress() as progress, shell.client() as client:
        result = client.load(model, on_progress=_reporter(progress))
    if shell.is_json:
        print_json(result)
    else:
        waited = format_duration(time.monotonic() - start)
        print_line(f"{result.get('model', model)} is {result.get('state', 'ready')} ({waited})")


def _reporter(progress: Progress) -> Callable[[str, float | None], None]:
    def report(phase: str, fraction: float | None) -> None:
        progress.on_event(Event(0, "loading", {"phase": phase, "fraction": fraction}))

    return report


@click.command("unload")
@click.argument("model", required=False)
@json_option
@click.pass_obj
def unload_command(shell: Shell, /, model: str | None) -> None:
    """Give MODEL's memory back. The next request for it loads it again."""
    with shell.client() as client:
        result = client.unload(model)
    if shell.is_json:
        print_json(result)
    else:
        print_line(f"{result.get('model', model)} is {result.get('state', 'unloaded')}")
