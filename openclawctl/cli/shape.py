"""The options that decide what shape an answer has, for `generate` and `chat`.

Owns how they become `format`, of which at most one may be given. Whether a schema or a grammar can
be followed is the model's worker's to say.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

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
    return {"type": "json_schema", "schema": _text(path)}


def _grammar(path: Path) -> dict[str, Any]:
    """llama.cpp's grammars define rules with `::=`, which means nothing in Lark."""
    text = _text(path)
    return {"type": "gbnf" if "::=" in text else "lark", "grammar": text}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise click.UsageError(f"{path} is not UTF-8 text") from None


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
