"""`openclawctl generate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from openclawctl.cli.answer import Progress, read_answer, stats_line
from openclawctl.cli.sampling import GroupedCommand, given, output_options, sampling_options
from openclawctl.cli.shape import shape_options
from openclawctl.cli.shell import (
    Shell,
    adapter_option,
    is_stdin_piped,
    json_option,
    label_options,
    model_option,
    print_json,
    read_stdin,
    say,
    scheduling_options,
    write,
)
from openclawctl.wire.errors import EXIT_FAILED, EXIT_INTERRUPTED

if TYPE_CHECKING:
    from openclawctl.client import Client, Stream
    from openclawctl.options import CompletionOptions, Prompt
    from openclawctl.results import Completion


@click.command("generate", cls=GroupedCommand)
@click.argument("prompt", required=False)
@model_option
@adapter_option
@click.option(
    "--system", "-s", metavar="TEXT", help="Answer as a chat with this system message (see above)."
)
@click.option("--suffix", metavar="TEXT", help="Fill in what belongs between PROMPT and TEXT.")
@click.option("--token-ids", is_flag=True, help="PROMPT is token ids, as `tokenize` prints them.")
@scheduling_options
@label_options
@shape_options
@sampling_options
@output_options
@json_option
@click.pass_obj
def generate_command(
    shell: Shell,
    /,
    prompt: str | None,
    model: str | None,
    system: str | None,
    token_ids: bool,  # noqa: FBT001 - click passes by name
    echo: bool,  # noqa: FBT001
    no_stream: bool,  # noqa: FBT001
    stats: bool,  # noqa: FBT001
    **sampling: Any,
) -> int:
    """Continue PROMPT, and print what the model adds.

    PROMPT is `-`, or absent, to read standard input. What is piped in comes after a PROMPT that is
    given, with a blank line between.

    The model continues the text as it stands. An instruct model follows instructions better with
    --system: then the prompt is a user's message, through the model's chat template.

    \b
    Examples:
      openclawctl generate "The capital of France is" --max-tokens 8
      openclawctl generate --system "Answer briefly." "Why is the sky blue?"
      cat notes.txt | openclawctl generate --system "" "Summarise:"
      openclawctl generate --regex "[0-9]{1,4}" "Rome was founded in the year "
      openclawctl generate --json --temperature 0 --seed 1 "2 + 2 =" | jq -r .text
    """
    text = _join_prompt(prompt)
    given_prompt = _parse_ids(text) if token_ids else text
    if system is not None and (echo or token_ids or sampling["suffix"] is not None):
        raise click.UsageError("--echo, --suffix and --token-ids need a prompt without --system")
    if system is None and sampling["reasoning"]:
        raise click.UsageError("--reasoning is of a chat: give --system, too")
    if sampling["logprobs"] and not shell.is_json:
        raise click.UsageError("--logprobs shows something with --json only")
    is_shown = not (no_stream or shell.is_json or (sampling["n"] or 1) > 1)
    with shell.client() as client, Progress() as progress:
        options = given({"model": model, **sampling, "on_event": progress.on_event})
        with _open(client, given_prompt, system=system, echo=echo, options=options) as stream:
            is_interrupted = read_answer(stream, progress, is_shown=is_shown)
            _finish(shell, stream.result, is_shown=is_shown)
    if is_interrupted or stats:
        say(("interrupted: " if is_interrupted else "") + stats_line(stream.result))
    elif stream.result.finish_reason == "cancelled":
        say("openclawctl: the request was cancelled by somebody else; this is not all of it")
    return _exit_status(stream.result, is_interrupted=is_interrupted)


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise click.UsageError(
            "with --token-ids the prompt is whole numbers, with spaces or commas between"
        ) from None


def _open(
    client: Client, prompt: Prompt, *, system: str | None, echo: bool, options: CompletionOptions
) -> Stream:
    if system is None:
        return client.generate(prompt, stream=True, echo=echo, **options)
    messages = [{"role": "system", "content": system}] if system else []
    return client.chat([*messages, {"role": "user", "content": prompt}], stream=True, **options)


def _join_prompt(prompt: str | None) -> str:
    """The argument and what is piped in, whichever there is."""
    argument = None if prompt == "-" else prompt
    if argument is None and prompt is None and not is_stdin_piped():
        raise click.UsageError("no prompt: give one as an argument, or pipe it in")
    piped = read_stdin() if prompt == "-" or is_stdin_piped() else ""
    text = "\n\n".join(part for part in (argument, piped) if part)
    if not text:
        raise click.UsageError("the prompt is empty")
    return text


def _finish(shell: Shell, result: Completion, *, is_shown: bool) -> None:
    """Print what was not printed yet; text always ends with a newline. Several answers have their
    numbers over them."""
    if shell.is_json:
        print_json(result.as_dict())
        return
    for number, text in enumerate(result.texts, 1):
        head = f"== {number} ==\n" if len(result.texts) > 1 else ""
        write(head + ("" if is_shown else text) + ("" if text.endswith("\n") else "\n"))


def _exit_status(result: Completion, *, is_interrupted: bool) -> int:
    if is_interrupted or result.finish_reason == "cancelled":
        return EXIT_INTERRUPTED
    return EXIT_FAILED if result.finish_reason == "error" else 0
