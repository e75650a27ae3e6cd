"""What every command shares: the global options, the client, and where output goes.

Standard output is data, standard error is chatter. Nothing that came from a model or a peer reaches
a terminal with its control characters: escape sequences can attack one.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import click

from openclawctl.wire.errors import OpenclawError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from click.shell_completion import CompletionItem

    from openclawctl.aio import AsyncClient
    from openclawctl.client import Client

NameKind = Literal["models", "adapters", "keys", "principals", "requests", "instances"]

_F = TypeVar("_F", bound="Callable[..., Any]")

_CONTROLS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""C0 without tab and newline, delete, and C1 (ECMA-48): what a terminal may take as a command."""

MAX_CONCURRENCY: Final = 256
"""Most requests that one connection may have open, by the daemon's default
(`max_requests_per_connection`)."""

_LEAST_WIDTH: Final = 8
"""Of a column that is shortened: enough to tell names apart."""

_JSON_UNSAFE: Final = re.compile("[\x7f-\x9f\u2028\u2029]")


class Shell:
    """The global options of one call of `openclawctl`."""

    def __init__(self) -> None:  # no dataclass: making one is a hundredth of `openclawctl status`
        self.socket_path: str | None = None
        self.api_key_file: str | None = None
        self.timeout_s: float | None = None
        self.is_json = False

    def client(self) -> Client:
        from openclawctl.client import Client

        self._keep_key()
        return Client(
            self.socket_path,
            timeout_s=self.timeout_s,
            api_key_file=self.api_key_file,
            app="openclawctl",
        )

    def async_client(self, *, retries: int, app: str = "openclawctl") -> AsyncClient:
        from openclawctl.aio import AsyncClient

        self._keep_key()
        return AsyncClient(
            self.socket_path,
            timeout_s=self.timeout_s,
            api_key_file=self.api_key_file,
            app=app,
            retries=retries,
        )

    def _keep_key(self) -> None:
        """An API key that this process is about to hold stays in it."""
        from openclawctl.paths import Target

        if Target(self.socket_path, self.api_key_file).holds_key():
            from openclawctl.cli.secrecy import keep_memory_private

            keep_memory_private()


def json_option(function: _F) -> _F:
    """Adds `--json`, which is known even when another option is wrong."""

    def remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's
        del param
        ctx.ensure_object(Shell).is_json = value

    return click.option(
        "--json",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=remember,
        help="Print one JSON object.",
    )(function)


def names_of(
    kind: NameKind,
) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """For `shell_complete`: names that the daemon knows, from `names.py`, imported when needed."""

    def complete(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from openclawctl.cli import names

        found: list[CompletionItem] = getattr(names, kind)(ctx, param, incomplete)
        return found

    return complete


def model_option(function: _F) -> _F:
    return click.option(
        "--model",
        "-m",
        metavar="NAME",
        help="Default: the client's or the daemon's default model.",
        shell_complete=names_of("models"),
    )(function)


def adapter_option(function: _F) -> _F:
    return click.option(
        "--adapter",
        metavar="NAME",
        help="Use this LoRA of the model.",
        shell_complete=names_of("adapters"),
    )(function)


def duration_s(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """The callback of an option that takes a duration."""
    from openclawctl.wire.units import parse_duration_s

    try:
        return None if value is None else parse_duration_s(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def _keep_alive_s(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    return -1.0 if value in ("forever", "-1") else duration_s(ctx, param, value)


def scheduling_options(function: _F) -> _F:
    """Adds `--priority`, `--deadline` and `--keep-alive`, which everything that computes has."""
    function = click.option(
        "--keep-alive",
        "keep_alive_s",
        metavar="DURATION",
        callback=_keep_alive_s,
        help="Keep the model loaded for 10m … after this, or forever. 0 unloads it.",
    )(function)
    function = click.option(
        "--deadline",
        "deadline_s",
        metavar="DURATION",
        callback=duration_s,
        help="End it after 30s, 5m …, wherever it is by then.",
    )(function)
    return click.option(
        "--priority",
        metavar="NAME",
        help="batch, normal (default) or interactive.",
    )(function)


def label_options(function: _F) -> _F:
    """Adds `--app` and `--session`, which everything that computes has."""
    function = click.option(
        "--session", metavar="NAME", help="The conversation or job that it belongs to."
    )(function)
    return click.option(
        "--app", metavar="NAME", help="The application that it is for. Default: openclawctl."
    )(function)


def say(text: str, *, start: str = "", end: str = "\n") -> None:
    """A line of chatter, on standard error. `start` is our own, and may have colours."""
    shown = printable(text) if sys.stderr.isatty() else text
    click.echo(start + shown + end, err=True, nl=False)


def say_error(message: str, hint: str = "", *, program: str = "openclawctl: ") -> None:
    """What went wrong, and what to do about it."""
    say(message, start=f"{program}{_styled('error:', fg='red', bold=True)} ")
    if hint:
        say(hint, start=f"{_styled('hint:', fg='cyan')} ")


def _styled(text: str, **style: Any) -> str:
    """In colour where standard error is a terminal that has some, and nobody said no
    (no-color.org)."""
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if is_plain or not sys.stderr.isatty() else click.style(text, **style)


def print_line(text: str = "") -> None:
    """A line of data."""
    write(text + "\n")


def write(text: str) -> None:
    """Data as it comes, at once."""
    _put(printable(text) if sys.stdout.isatty() else text)


def _put(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise  # a reader that has seen enough is no failure
    except OSError as error:
        raise OutputFailed(error) from None


def probe_output() -> None:
    """Raises `OutputFailed` when standard output takes nothing more. A line's end is written: of
    what was too large for a buffer nothing is kept that a flush would try again."""
    _put("\n")


class OutputFailed(OpenclawError):
    """Standard output takes nothing more, so neither may what is said of this go there. What is
    written to it after this is lost."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to standard output: {error.strerror}")
        drop_output()


def drop_output() -> None:
    """Nothing more can be written, and Python would complain when it closes standard output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def print_json(value: object, *, indent: int | None = 2) -> None:
    import json  # here: `openclawctl status` without --json does not need it

    text = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
    _put(_JSON_UNSAFE.sub(_escape, text) + "\n")


def print_json_line(value: object) -> None:
    """One object on one line, at once."""
    print_json(value, indent=None)


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def printable(text: str) -> str:
    """The text with control characters made visible as U+FFFD; carriage returns are dropped."""
    return _CONTROLS.sub("\ufffd", text.replace("\r", ""))


def one_line(text: str) -> str:
    """The text with all that is not printable made visible as U+FFFD, line breaks, tabs and what
    changes the direction of text too: no name in a table makes a row, or moves a column."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, right: str = "", cut: str = ""
) -> None:
    """Aligned columns. `right` names those that hold numbers, `cut` those that are shortened where
    a terminal is too narrow: names and reasons, never a number."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in table_lines(header, rows, right=right, cut=cut, width=width):
        print_line(line)


def table_lines(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: str = "",
    cut: str = "",
    width: int | None = None,
) -> list[str]:
    """The lines of a table, its columns two spaces apart, each cell on one line. What does not fit
    into `width` is taken from the columns in `cut`, the widest first, as far as that goes; one
    space is between columns if only that makes all fit."""
    lines = [[one_line(cell) for cell in line] for line in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    gap = "  "
    if width is not None:
        gap = _narrow(widths, [name in cut.split() for name in header], width)
    numeric = [name in right.split() for name in header]
    found = []
    for line in lines:
        cells = [
            _fitted(cell, room).rjust(room) if is_right else _fitted(cell, room).ljust(room)
            for cell, room, is_right in zip(line, widths, numeric, strict=True)
        ]
        found.append(gap.join(cells).rstrip())
    return found


def _narrow(widths: list[int], may_shrink: list[bool], width: int) -> str:
    """Make the widest of some columns narrower until all fit, none below `_LEAST_WIDTH`. Returns
    what is between two columns."""
    num_gaps = len(widths) - 1
    least = sum(
        min(each, _LEAST_WIDTH) if may else each
        for each, may in zip(widths, may_shrink, strict=True)
    )
    gap = " " if least + num_gaps <= width < least + 2 * num_gaps else "  "
    while sum(widths) > width - len(gap) * num_gaps:
        widest = max(
            (i for i, may in enumerate(may_shrink) if may and widths[i] > _LEAST_WIDTH),
            key=lambda i: widths[i],
            default=None,
        )
        if widest is None:
            break
        widths[widest] -= 1
    return gap


def _fitted(cell: str, width: int) -> str:
    return cell if len(cell) <= width else cell[: width - 1] + "…"


@contextlib.contextmanager
def show_again() -> Iterator[None]:
    """What the block prints stands in place of what was there before, if this is a terminal; else a
    blank line comes after it."""
    click.clear()
    yield
    if not sys.stdout.isatty():
        print_line()


def warn_of_context(context: dict[str, Any]) -> None:
    """Say on stderr what became of the texts, if anything did."""
    if context.get("dropped"):
        policy, dropped, came = (context[n] for n in ("policy", "dropped", "prompt_tokens_in"))
        say(f"openclawctl: warning: {dropped} of {came} tokens were dropped ({policy})")
    if name := context.get("fallback_from"):
        say(f"openclawctl: warning: another model answers instead of {name}")
