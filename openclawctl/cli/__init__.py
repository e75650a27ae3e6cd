"""`openclawctl`: the command table, and what becomes of errors.

Owns which module holds which command, and the exit statuses. A command's module is imported when
it is called, so `openclawctl status` does not pay for `openclawctl chat`.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from openclawctl import __version__
from openclawctl.cli.shell import (
    OutputFailed,
    Shell,
    drop_output,
    print_json,
    probe_output,
    say_error,
)
from openclawctl.wire.errors import EXIT_INTERRUPTED, EXIT_USAGE, OpenclawError

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_PIPE_CLOSED: Final = 141
"""What a shell reports of a program that SIGPIPE ended: whoever read our output has left."""

COMMANDS: Final = {
    "audit": "audit",
    "bench": "bench",
    "budgets": "budgets",
    "chat": "chat",
    "classify": "scores",
    "completion": "completion",
    "config": "config",
    "daemon": "daemon",
    "detokenize": "texts",
    "drain": "drain",
    "doctor": "doctor",
    "embed": "texts",
    "generate": "generate",
    "health": "health",
    "insights": "insights",
    "keys": "keys",
    "ledger": "ledger",
    "load": "models",
    "logs": "logs",
    "ls": "models",
    "models": "models",
    "ping": "server",
    "ps": "residents",
    "pull": "models",
    "reload": "config",
    "requests": "requests",
    "rerank": "scores",
    "resume": "drain",
    "show": "residents",
    "status": "server",
    "tokenize": "texts",
    "top": "top",
    "unload": "models",
    "usage": "usage",
    "version": "server",
    "whoami": "keys",
}
"""Which module of this package holds each command, under the command's own name."""

_ALIASES: Final = {"ls": "models"}

_OF_OTHERS: Final = {
    "list": "models",
    "rm": "models rm",
    "run": "generate",
    "serve": "daemon start",
    "stop": "unload",
}
"""What Ollama's commands are called here."""

_EPILOG: Final = """\b
Exit status: 0 ok, 1 failed, 2 usage, 3 daemon not reachable, 4 not found,
5 denied or over a limit, 6 busy (try again), 7 timed out, 130 interrupted.
\b
The socket is the first of: --socket, $OPENCLAWD_SOCKET, `socket:` in
~/.config/openclawd/client.yaml, /run/openclawd/openclawd.sock if it exists,
$XDG_RUNTIME_DIR/openclawd/openclawd.sock.
"""


class _OutputClosed(Exception):
    """Standard output's reader has left. Not an `OSError`: click would end the process itself."""


class _LazyGroup(click.Group):
    """Imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        import importlib

        module = importlib.import_module(f"openclawctl.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, f"{_ALIASES.get(cmd_name, cmd_name)}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Adds what was probably meant to click's "no such command"."""
        is_unknown = args and not args[0].startswith("-") and args[0] not in COMMANDS
        if is_unknown and not ctx.resilient_parsing:  # a shell that completes
            from openclawctl.wire.fields import suggestion

            ours = _OF_OTHERS.get(args[0])
            meant = f"; here it is {ours!r}" if ours else suggestion(args[0], COMMANDS)
            ctx.fail(f"no such command {args[0]!r}{meant}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise _OutputClosed from None


@click.group(
    cls=_LazyGroup,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--socket", metavar="PATH", help="The daemon's socket.")
@click.option("--api-key-file", metavar="FILE", help="A file that holds an API key.")
@click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="Give up after this long without any news. Default: 30 for ping, status, requests, "
    "models, show, usage, insights, budgets, whoami and audit, else none.",
)
@click.version_option(__version__, prog_name="openclawctl", message="%(prog)s %(version)s")
@click.pass_context
def cli(
    ctx: click.Context, socket: str | None, api_key_file: str | None, timeout_s: float | None
) -> None:
    """Talk to openclawd, the daemon that keeps language models warm.

    \b
    Examples:
      openclawctl generate "The capital of France is"
      git diff | openclawctl generate --system "Write a commit message." -
      openclawctl chat
      openclawctl status
    """
    shell = ctx.ensure_object(Shell)
    shell.socket_path = socket
    shell.api_key_file = api_key_file
    shell.timeout_s = timeout_s


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point."""
    _fill_standard_streams()
    if hasattr(sys.stdout, "reconfigure"):  # a terminal that cannot show a character shows "?"
        sys.stdout.reconfigure(errors="replace")
    sys.exit(run(argv))


def _fill_standard_streams() -> None:
    """A caller may have closed some. /dev/null takes their places, or the daemon's socket would get
    one of their descriptors. What is written to the missing output still fails."""
    if sys.stdin is None:
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY))
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status."""
    shell = Shell()
    try:
        status = _invoke(shell, None if argv is None else list(argv))
    except click.Abort:
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        return _usage_error(shell, error)
    except OutputFailed as error:
        say_error(error.message)
        return error.exit_status
    except OpenclawError as error:
        return _report(shell, error.as_dict(), error.exit_status)
    except (_OutputClosed, BrokenPipeError):
        drop_output()
        return EXIT_PIPE_CLOSED
    return status if isinstance(status, int) else 0


def _invoke(shell: Shell, args: list[str] | None) -> Any:
    """What click returns. Raises `OutputFailed` also where click itself, or rich, was writing."""
    try:
        status = cli.main(args, prog_name="openclawctl", obj=shell, standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError:
        probe_output()
        raise
    return status


def _usage_error(shell: Shell, error: click.ClickException) -> int:
    hint = ""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f"see `{error.ctx.command_path} --help`"
    problem = {"code": "usage", "kind": "request", "message": error.format_message(), "hint": hint}
    return _report(shell, problem, EXIT_USAGE)


def _report(shell: Shell, problem: dict[str, Any], exit_status: int) -> int:
    if not (shell.is_json and _could_print({"error": {**problem, "exit_status": exit_status}})):
        say_error(problem["message"], problem["hint"])
    return exit_status


def _could_print(value: dict[str, Any]) -> bool:
    try:
        print_json(value)
    except BrokenPipeError:
        drop_output()
    except OutputFailed as error:
        say_error(error.message)
        return False
    return True
