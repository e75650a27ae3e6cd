"""The options that decide what a model's answer is like, for `generate` and `chat`.

Owns their table and the headings they stand under in `--help`. What is allowed is the wire's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from openclawctl.options import CompletionOptions

_F = TypeVar("_F", bound="Callable[..., Any]")

_FIRST: Final = "Options"


class GroupedOption(click.Option):
    """An option that says under which heading of `--help` it stands."""

    def __init__(self, *args: Any, group: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.group = group


class GroupedCommand(click.Command):
    """A command with so many options that `--help` needs headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {_FIRST: []}
        options = (param for param in self.get_params(ctx) if isinstance(param, click.Option))
        for param in options:
            if (record := param.get_help_record(ctx)) is not None:
                groups.setdefault(getattr(param, "group", _FIRST), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def grouped(group: str, *names: str, **attributes: Any) -> Callable[[_F], _F]:
    """`click.option` under a heading."""
    return click.option(*names, cls=GroupedOption, group=group, **attributes)


def _number(group: str, name: str, help_text: str) -> Callable[[_F], _F]:
    return grouped(group, name, type=float, metavar="X", help=help_text)


def _integer(group: str, name: str, help_text: str) -> Callable[[_F], _F]:
    return grouped(group, name, type=int, metavar="N", help=help_text)


_END: Final = "Length and end"
_OUTPUT: Final = "Output"
_CHOICE: Final = "Choice of tokens"
_REPETITION: Final = "Against repetition"

_OPTIONS: Final = (
    _integer(_END, "--max-tokens", "At most N tokens."),
    _integer(_END, "--min-tokens", "No end before N tokens."),
    grouped(_END, "--stop", multiple=True, metavar="TEXT", help="End before TEXT; repeatable."),
    grouped(
        _END, "--ignore-eos", is_flag=True, default=None, help="The model cannot end the text."
    ),
    grouped(
        _CHOICE, "--temperature", "-t", type=float, metavar="X", help="0: always the likeliest."
    ),
    _integer(_CHOICE, "--seed", "The same seed gives the same text."),
    _integer(_CHOICE, "--top-k", "The N likeliest tokens; 0: all."),
    _number(_CHOICE, "--top-p", "Likeliest tokens up to this share; 1: all."),
    _number(_CHOICE, "--min-p", "Not below X times the likeliest; 0: all."),
    _number(_CHOICE, "--typical-p", "As surprising as expected, up to this share; 1: all."),
    _number(_CHOICE, "--xtc-probability", "How often to leave out the likeliest; 0: off."),
    _number(_CHOICE, "--xtc-threshold", "What makes a token one of the likeliest for that."),
    _integer(_CHOICE, "--mirostat", "Even surprise, by version 1 or 2; 0: off."),
    _number(_CHOICE, "--mirostat-tau", "How much surprise, in bits a token."),
    _number(_CHOICE, "--mirostat-eta", "How fast mirostat steers towards it."),
    _number(_REPETITION, "--repeat-penalty", "For tokens that came before; 1: off."),
    _integer(_REPETITION, "--repeat-last-n", "How far back the penalties look."),
    _number(_REPETITION, "--frequency-penalty", "For each time a token came; 0: off."),
    _number(_REPETITION, "--presence-penalty", "Once a token came; 0: off."),
    _number(_REPETITION, "--dry-multiplier", "For going on with a run seen before; 0: off."),
    _number(_REPETITION, "--dry-base", "Grows that with the run's length."),
    _integer(_REPETITION, "--dry-allowed-length", "The shortest run that counts."),
    _integer(_REPETITION, "--dry-penalty-last-n", "How far back to look for runs."),
)


_OUTPUT_OPTIONS: Final = (
    grouped(
        _OUTPUT,
        "--choices",
        "-n",
        "n",
        type=int,
        metavar="N",
        help="So many answers to the one prompt.",
    ),
    grouped(_OUTPUT, "--echo", is_flag=True, help="Begin with the prompt."),
    grouped(
        _OUTPUT,
        "--logprobs",
        is_flag=True,
        default=None,
        help="How likely each token was, in --json.",
    ),
    _integer(_OUTPUT, "--top-logprobs", "And the N likeliest in its place."),
    grouped(_OUTPUT, "--no-stream", is_flag=True, help="Print the text when it is complete."),
    grouped(
        _OUTPUT, "--stats", is_flag=True, help="Print token counts and times to standard error."
    ),
)


def output_options(function: _F) -> _F:
    """Adds the options of `generate` that say what is printed."""
    for option in reversed(_OUTPUT_OPTIONS):
        function = option(function)
    return function


def sampling_options(function: _F) -> _F:
    """Adds the options that `generate` and `chat` share."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def given(options: dict[str, Any]) -> CompletionOptions:
    """The options that were given: what was left out is the model's to decide."""
    chosen = {name: value for name, value in options.items() if value not in (None, ())}
    return cast("CompletionOptions", chosen)
