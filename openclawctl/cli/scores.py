"""`openclawctl classify` and `rerank`: texts in, scores out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from openclawctl.cli.inputs import lines_of_stdin
from openclawctl.cli.shell import (
    Shell,
    json_option,
    label_options,
    model_option,
    print_json,
    print_line,
    scheduling_options,
    warn_of_context,
)

if TYPE_CHECKING:
    from typing import Unpack

    from openclawctl.options import ScoringOptions


@click.command("classify")
@click.argument("texts", nargs=-1)
@model_option
@click.option("--top-k", type=int, metavar="N", help="Print the N best labels. Default: all.")
@scheduling_options
@label_options
@json_option
@click.pass_obj
def classify_command(
    shell: Shell,
    /,
    texts: tuple[str, ...],
    top_k: int | None,
    **options: Unpack[ScoringOptions],
) -> None:
    """Print the labels of each text with their scores, the best first, one line each.

    Without TEXTS, each line of standard input is one text; empty lines are left out.

    \b
    Examples:
      openclawctl classify -m intent "Where is my parcel?"
      openclawctl classify -m sentiment --top-k 1 < reviews.txt
    """
    values = list(texts) or lines_of_stdin()
    if not values:
        raise click.UsageError("no text to classify")
    with shell.client() as client:
        result = client.classify(values, top_k=top_k, **options)
    warn_of_context(result.context)
    if shell.is_json:
        print_json(result.as_dict())
        return
    for labels in result:
        print_line("\t".join(f"{each.label} {each.score:.4f}" for each in labels))


@click.command("rerank")
@click.argument("query")
@click.argument("documents", nargs=-1)
@model_option
@click.option("--top-n", type=int, metavar="N", help="Print the N best documents. Default: all.")
@scheduling_options
@label_options
@json_option
@click.pass_obj
def rerank_command(
    shell: Shell,
    /,
    query: str,
    documents: tuple[str, ...],
    top_n: int | None,
    **options: Unpack[ScoringOptions],
) -> None:
    """Print the documents that answer QUERY best first: score, number (from 0) and text.

    Without DOCUMENTS, each line of standard input is one document; empty lines are left out.

    \b
    Examples:
      openclawctl rerank -m reranker "opening hours" "We open at 9." "We sell bread."
      openclawctl rerank -m reranker --top-n 3 "how to reset" < answers.txt
    """
    values = list(documents) or lines_of_stdin()
    if not values:
        raise click.UsageError("no documents to rank")
    with shell.client() as client:
        result = client.rerank(query, values, top_n=top_n, **options)
    warn_of_context(result.context)
    if shell.is_json:
        print_json(result.as_dict())
        return
    for each in result:
        print_line(f"{each.score:.4f}\t{each.index}\t{values[each.index]}")
