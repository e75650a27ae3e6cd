"""`openclawctl models` (`ls`, with `rm` and `verify`), `load`, `unload` and `pull`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from openclawctl.cli.answer import Progress
from openclawctl.cli.residents import print_memory
from openclawctl.cli.shell import Shell, json_option, names_of, print_json, print_line, print_table
from openclawctl.wire.messages import Event
from openclawctl.wire.units import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Callable


@click.group("models", invoke_without_command=True)
@json_option
@click.pass_context
def models_command(ctx: click.Context) -> None:
    """List every model that the daemon knows, loaded or not.

    \b
    Examples:
      openclawctl models
      openclawctl models verify SmolLM2-135M-Instruct-Q4_K_M
      openclawctl models rm SmolLM2-135M-Instruct-Q4_K_M
    """
    if ctx.invoked_subcommand is None:
        _list_models(ctx.ensure_object(Shell))


def _list_models(shell: Shell) -> None:
    with shell.client() as client:
        models = client.models()
    if shell.is_json:
        print_json({"models": models})
        return
    header = ["NAME", "STATE", "PARAMETERS", "SIZE", "CONTEXT", "ALIASES", "DESCRIPTION"]
    rows = [_model_row(model) for model in models]
    print_table(header, rows, right="PARAMETERS SIZE CONTEXT", cut="NAME ALIASES DESCRIPTION")


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
@click.argument("model", required=False, shell_complete=names_of("models"))
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
@click.argument("model", required=False, shell_complete=names_of("models"))
@json_option
@click.pass_obj
def unload_command(shell: Shell, /, model: str | None) -> None:
    """Give MODEL's memory back. The next request for it loads it again.

    \b
    Example:
      openclawctl unload smollm2
    """
    with shell.client() as client:
        result = client.unload(model)
    if shell.is_json:
        print_json(result)
    else:
        print_line(f"{result.get('model', model)} is {result.get('state', 'unloaded')}")


@click.command("pull")
@click.argument("source", metavar="REPO[:FILE]|URL")
@click.option("--name", metavar="NAME", help="What to call the model. Default: by its file.")
@click.option("--revision", metavar="REV", help="A branch, tag or commit. Default: main.")
@click.option("--sha256", metavar="HEX", help="The file's checksum; an address needs one.")
@click.option("--replace", is_flag=True, help="Replace another model of that name.")
@click.option("--unverified", is_flag=True, help="Take what nobody gives a checksum of.")
@json_option
@click.pass_obj
def pull_command(shell: Shell, /, source: str, **options: Any) -> None:
    """Have the daemon get a model from its hub, or from an https address.

    FILE is a file of the repository, a pattern, or a part of a name such as Q4_K_M. Asked again, it
    goes on where it broke off; what has come is kept for a week.

    \b
    Examples:
      openclawctl pull bartowski/SmolLM2-135M-Instruct-GGUF:Q4_K_M
      openclawctl pull HuggingFaceTB/SmolLM2-135M-Instruct
      openclawctl pull https://example.org/m.gguf --sha256 0f1e…
    """
    with Progress() as progress, shell.client() as client:
        result = client.pull(source, on_progress=_file_reporter(progress, "fetching"), **options)
    if shell.is_json:
        print_json(result)
        return
    name, size = result.get("name", "?"), format_size(result.get("bytes") or 0)
    what = "is here now" if result.get("new") else "was here already"
    checked = "verified" if result.get("verified") else "not verified: nobody gave a checksum"
    print_line(f"{name} {what} ({size}, {checked}): {result.get('path', '?')}")


@models_command.command("rm")
@click.argument("model", shell_complete=names_of("models"))
@json_option
@click.pass_obj
def rm_command(shell: Shell, /, model: str) -> None:
    """Delete MODEL's file. Refused while a model of the daemon uses it.

    \b
    Example:
      openclawctl models rm SmolLM2-135M-Instruct-Q4_K_M
    """
    with shell.client() as client:
        result = client.remove_model(model)
    if shell.is_json:
        print_json(result)
    else:
        print_line(f"{model} is deleted: {format_size(result.get('bytes') or 0)} are free again")


@models_command.command("verify")
@click.argument("model", shell_complete=names_of("models"))
@json_option
@click.pass_obj
def verify_command(shell: Shell, /, model: str) -> int:
    """Read MODEL's files, and compare them with their checksums. Exit status 1 if one is damaged.

    A file that was not fetched by the daemon, or was changed by somebody, has none to compare with;
    that of now is remembered.

    \b
    Examples:
      openclawctl models verify SmolLM2-135M-Instruct-Q4_K_M
      openclawctl models verify SmolLM2-135M-Instruct-Q4_K_M --json | jq '.damaged[]'
    """
    with Progress() as progress, shell.client() as client:
        result = client.verify_model(model, on_progress=_file_reporter(progress, "reading"))
    damaged, unknown = result.get("damaged") or [], result.get("first_seen") or []
    if shell.is_json:
        print_json(result)
        return 1 if damaged else 0
    for file in damaged:
        print_line(f"{file} is damaged or missing: it is not what it was when it was verified")
    for file in unknown:
        print_line(f"{file} has no checksum to compare with; that of now is remembered")
    if not damaged and not unknown:
        print_line(f"{model} is what it was ({format_size(result.get('bytes') or 0)})")
    return 1 if damaged else 0


def _file_reporter(progress: Progress, verb: str) -> Callable[[str, int, int | None], None]:
    def report(file: str, done: int, total: int | None) -> None:
        whole = f" of {format_size(total)}" if total else ""
        progress.show(f"{verb} {file}: {format_size(done)}{whole}", done / total if total else None)

    return report
