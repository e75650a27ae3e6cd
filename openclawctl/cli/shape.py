"""The options that decide what shape an answer has, for `generate` and `chat`.

Owns how they become `format`, of which at most one may be given. Whether a schema or a grammar can
be followed is the model's worker's to say.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from openclawctl.cli.inputs import read_file
from openclawctl.cli.sampling import grouped

if TYPE_CHECKING:
    from collections.abc import Callable

_F = TypeVar("_F", bound="Callable[..., Any]")

_SHAPE: Final = "Shape of the answer"
_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


def shape_options(function: _F) -> _F:
    """Adds the options; together they give the keywords `format` and `reasoning`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def _option(
    name: str, make: Callable[[Any], dict[str, Any]], help_text: str, **attributes: Any
) -> Callable[[_F], _F]:
    def remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        del param
        if not value:
            return
        if "format" in ctx.params:
            raise click.UsageError("an answer can have one shape only; see --help")
        ctx.params["format"] = make(value)

    return grouped(
        _SHAPE, name, help=help_text, expose_value=False, callback=remember, **attributes
    )


def _schema(path: Path) -> dict[str, Any]:
    """As text, which can be deeper than the maps of a frame; what it is, is judged here, where the
    file has a name."""
    import json  # here: no other option needs it

    text = read_file(path)
    try:
        schema = json.loads(text)
    except json.JSONDecodeError as error:
        raise click.UsageError(
            f"{path} is no JSON: {error.msg}: line {error.lineno} column {error.colno}"
        ) from None
    except (ValueError, RecursionError) as error:  # a number too long, too many brackets
        raise click.UsageError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(schema, dict):
        raise click.UsageError(
            f'{path} is JSON, but no JSON object; a schema is one, such as {{"type": "object"}}'
        )
    return {"type": "json_schema", "schema": text}


def _grammar(path: Path) -> dict[str, Any]:
    """llama.cpp's grammars define rules with `::=`, which means nothing in Lark."""
    text = read_file(path)
    return {"type": "gbnf" if "::=" in text else "lark", "grammar": text}


_OPTIONS: Final = (
    grouped(
        _SHAPE,
        "--reasoning",
        metavar="split|raw|off",
        help="Of a chat: what becomes of what the model thinks first.",
    ),
    _option("--json-schema", _schema, "JSON that follows a schema.", type=_FILE, metavar="FILE"),
    _option("--json-object", lambda _: {"type": "json_object"}, "Any JSON object.", is_flag=True),
    _option(
        "--regex",
        lambda pattern: {"type": "regex", "pattern": pattern},
        "Text that a regular expression matches as a whole.",
        metavar="PATTERN",
    ),
    _option(
        "--grammar", _grammar, "What a Lark or GBNF grammar allows.", type=_FILE, metavar="FILE"
    ),
)
