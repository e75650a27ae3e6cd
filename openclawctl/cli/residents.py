"""`openclawctl ps` and `show`: the models that are in memory, and the memory that one takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from openclawctl.cli.shell import (
    json_option,
    names_of,
    print_json,
    print_json_line,
    print_line,
    print_table,
    show_again,
)
from openclawctl.wire.units import format_duration, format_size

if TYPE_CHECKING:
    from openclawctl.cli.shell import Shell

_AWAKE = frozenset({"loading", "ready", "draining", "backoff"})

_HEADER = [
    "NAME", "BACKEND", "STATE", "DEVICE", "MEMORY", "CONTEXT", "SLOTS", "QUEUED", "TOK/S",
    "IDLE/UNTIL",
]  # fmt: skip
_NUMBERS = "MEMORY CONTEXT SLOTS QUEUED TOK/S IDLE/UNTIL"


@click.command("ps")
@click.option("--watch", "-w", is_flag=True, help="Show it again whenever it changes.")
@json_option
@click.pass_obj
def ps_command(shell: Shell, /, *, watch: bool) -> None:
    """List the models that are in memory, on their way, or waited for.

    SLOTS are those that compute, of those there are; QUEUED the requests that wait for one, or for
    the model. IDLE/UNTIL is how long nobody has used it, and when it will be unloaded.

    \b
    Examples:
      openclawctl ps
      openclawctl ps --watch
      openclawctl ps --watch --json | jq -c '.models[].state'
    """
    with shell.client() as client:
        if not watch:
            _show(shell, client.models())
            return
        try:
            client.watch(lambda models: _show_again(shell, models))
        except KeyboardInterrupt:
            return


def _show(shell: Shell, models: list[dict[str, Any]]) -> None:
    awake = [model for model in models if model.get("state") in _AWAKE or model.get("waiting")]
    if shell.is_json:
        print_json({"models": awake})
    else:
        rows = [_row(model) for model in awake]
        print_table(_HEADER, rows, right=_NUMBERS, cut="NAME DEVICE")


def _show_again(shell: Shell, models: list[dict[str, Any]]) -> None:
    if shell.is_json:
        print_json_line({"models": models})
        return
    with show_again():
        _show(shell, models)


def _row(model: dict[str, Any]) -> list[str]:
    rate = model.get("tokens_per_s")
    queued = model.get("queued", 0) + model.get("waiting", 0)
    return [
        str(model.get("name", "?")),
        str(model.get("backend", "?")),
        str(model.get("state", "?")),
        ", ".join(model.get("devices") or []) or "-",
        format_size(model["memory_bytes"]) if model.get("memory_bytes") else "-",
        str(model.get("context") or "-"),
        f"{model.get('busy', 0)}/{model.get('slots') or model.get('parallel') or '-'}",
        str(queued),
        f"{rate:.1f}" if rate else "-",
        _idle_until(model),
    ]


def _idle_until(model: dict[str, Any]) -> str:
    idle_s, expires_in_s = model.get("idle_s"), model.get("expires_in_s")
    if idle_s is None:
        return "-"
    until = "never" if expires_in_s is None else format_duration(expires_in_s)
    return f"{format_duration(idle_s)}/{until}"


@click.command("show")
@click.argument("model", required=False, shell_complete=names_of("models"))
@json_option
@click.pass_obj
def show_command(shell: Shell, /, model: str | None) -> None:
    """Show MODEL (default: the default model), and what its memory is made of.

    \b
    Examples:
      openclawctl show smollm2
      openclawctl show --json smollm2 | jq .memory.total_bytes
    """
    with shell.client() as client:
        shown = client.show(model)
    if shell.is_json:
        print_json(shown)
        return
    row = shown.get("model") or {}
    info = row.get("info") or {}
    reason = row.get("reason") or info.get("description") or ""
    print_line(f"{row.get('name', '?')}: {row.get('state', '?')}{reason and f' ({reason})'}")
    print_line(f"  file      {row.get('path', '-')}")
    print_line(
        f"  settings  {row.get('parallel', '-')} sequences of {row.get('context', '-')} tokens"
    )
    print_line(f"  aliases   {', '.join(row.get('aliases') or []) or '-'}")
    print_memory(shell, shown)


def print_memory(shell: Shell, shown: dict[str, Any]) -> None:
    """The sum, and whether there is room for it."""
    if shell.is_json:
        print_json(shown)
        return
    memory = shown.get("memory") or {}
    parts = memory.get("parts") or []
    name = (shown.get("model") or {}).get("name", "?")
    if not parts:
        print_line(f"{name}: what its files hold is not known, so neither is its memory")
        return
    print_line(f"memory of {name}, {memory.get('basis', 'estimated')}:")
    rows = [_part_row(part) for part in parts]
    rows.append(["sum", format_size(memory.get("total_bytes", 0)), "", _workers(memory)])
    print_table(["PART", "SIZE", "DEVICE", "HOW"], rows, right="SIZE", cut="PART DEVICE HOW")
    print_line(_verdict(name, memory))


def _part_row(part: dict[str, Any]) -> list[str]:
    how = str(part.get("how", ""))
    shared = ", mapped: workers of one file share it" if part.get("is_mapped") else ""
    return [
        str(part.get("name", "?")),
        format_size(part.get("num_bytes", 0)),
        str(part.get("device", "?")),
        how + shared,
    ]


def _workers(memory: dict[str, Any]) -> str:
    num = memory.get("num_workers", 1)
    return "" if num == 1 else f"for each of {num} workers"


def _verdict(name: str, memory: dict[str, Any]) -> str:
    budget, held = format_size(memory.get("budget_bytes", 0)), memory.get("held_bytes", 0)
    room = f"all models together may take {budget} and take {format_size(held)} now"
    if memory.get("is_loaded"):
        return f"{room}, {name} included"
    if not memory.get("can_fit"):
        return f"{room}: {name} does not fit, not even if others make way"
    if not memory.get("fits_now"):
        return f"{room}: others would make way for {name}"
    return f"{room}: {name} fits beside them"
