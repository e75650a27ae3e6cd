"""`openclawctl embed`, `tokenize` and `detokenize`: texts in, numbers out, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from openclawctl.cli.inputs import lines_of_stdin, piped
from openclawctl.cli.shell import (
    Shell,
    adapter_option,
    json_option,
    label_options,
    model_option,
    print_json,
    print_line,
    scheduling_options,
    warn_of_context,
    write,
)

if TYPE_CHECKING:
    from typing import Unpack

    from openclawctl.options import EmbedOptions


@click.command("embed")
@click.argument("texts", nargs=-1)
@model_option
@adapter_option
@scheduling_options
@label_options
@json_option
@click.pass_obj
def embed_command(
    shell: Shell,
    /,
    texts: tuple[str, ...],
    **options: Unpack[EmbedOptions],
) -> None:
    """Print a normalised vector for each text, one line each.

    Without TEXTS, each line of standard input is one text; empty lines are left out.

    \b
    Examples:
      openclawctl embed "a cat" "a dog"
      openclawctl embed --json < sentences.txt | jq '.embeddings | length'
    """
    values = list(texts) or lines_of_stdin()
    if not values:
        raise click.UsageError("no text to embed")
    with shell.client() as client:
        result = client.embed(values, **options)
    warn_of_context(result.context)
    if shell.is_json:
        print_json(result.as_dict())
        return
    for vector in result:
        print_line(" ".join(f"{value:.8g}" for value in vector))


@click.command("tokenize")
@click.argument("text", required=False)
@model_option
@click.option("--add-special", is_flag=True, help="With what the model wants before a prompt.")
@click.option("--count", is_flag=True, help="Print the number of tokens only.")
@json_option
@click.pass_obj
def tokenize_command(
    shell: Shell,
    /,
    text: str | None,
    model: str | None,
    add_special: bool,  # noqa: FBT001 - click passes by name
    count: bool,  # noqa: FBT001
) -> None:
    """Print the token ids of TEXT, or of standard input.

    \b
    Examples:
      openclawctl tokenize "Hello world"
      openclawctl tokenize --count < prompt.txt
    """
    value = piped() if text in (None, "-") else text
    assert value is not None
    with shell.client() as client:
        tokens = client.tokenize(value, model=model, add_special=add_special)
    if shell.is_json:
        print_json({"tokens": tokens, "num_tokens": len(tokens)})
    else:
        print_line(str(len(tokens)) if count else " ".join(map(str, tokens)))


@click.command("detokenize")
@click.argument("ids", nargs=-1)
@model_option
@json_option
@click.pass_obj
def detokenize_command(shell: Shell, /, ids: tuple[str, ...], model: str | None) -> None:
    """Print the text of token IDS, or of those on standard input.

    \b
    Example:
      openclawctl tokenize "Hello world" | openclawctl detokenize
    """
    try:
        tokens = [int(word) for word in (ids or piped().split())]
    except ValueError:
        raise click.UsageError("token ids are integers, with spaces between") from None
    with shell.client() as client:
        text = client.detokenize(tokens, model=model)
    if shell.is_json:
        print_json({"text": text})
    else:
        write(text + "\n")
