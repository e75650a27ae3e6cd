"""`openclawctl generate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import click

from openclawctl.cli.answer import Progress, chat_of, read_answer, stats_line, was_cancelled
from openclawctl.cli.inputs import is_stdin_piped, read_stdin
from openclawctl.cli.sampling import (
    GroupedCommand,
    given,
    grouped,
    output_options,
    sampling_options,
)
from openclawctl.cli.shape import shape_options
from openclawctl.cli.shell import (
    MAX_CONCURRENCY,
    Shell,
    adapter_option,
    json_option,
    label_options,
    model_option,
    print_json,
    say,
    scheduling_options,
    write,
)
from openclawctl.wire.errors import EXIT_FAILED, EXIT_INTERRUPTED

if TYPE_CHECKING:
    from openclawctl.client import Client, Stream
    from openclawctl.options import CompletionOptions, Prompt
    from openclawctl.results import Completion


DEFAULT_CONCURRENCY: Final = 8
_BATCH: Final = "Batch"


def _batch_options(function: Any) -> Any:
    for option in reversed(
        (
            grouped(
                _BATCH,
                "--batch",
                type=click.Path(exists=True, dir_okay=False, allow_dash=True),
                metavar="FILE",
                help="Ask what the lines of FILE say, several at once; `-` is standard input.",
            ),
            grouped(
                _BATCH,
                "--out",
                type=click.Path(),
                metavar="FILE",
                help="Add their answers to FILE; what has one is not asked again.",
            ),
            grouped(
                _BATCH,
                "--concurrency",
                type=click.IntRange(1, MAX_CONCURRENCY),
                metavar="N",
                default=DEFAULT_CONCURRENCY,
                show_default=True,
                help="So many requests at once.",
            ),
        )
    ):
        function = option(function)
    return function


@click.command("generate", cls=GroupedCommand)
@click.argument("prompt", required=False)
@model_option
@adapter_option
@click.option(
    "--system", "-s", metavar="TEXT", help="Answer as a chat with this system message (see above)."
)
@click.option("--suffix", metavar="TEXT", help="Fill in what belongs between PROMPT and TEXT.")
@click.option("--token-ids", is_flag=True, help="PROMPT is token ids, as `tokenize` prints them.")
@click.option("--dry-run", is_flag=True, help="Say what it would take, and compute nothing.")
@scheduling_options
@label_options
@_batch_options
@shape_options
@sampling_options
@output_options
@json_option
@click.pass_obj
def generate_command(
    shell: Shell,
    /,
    *,
    prompt: str | None,
    system: str | None,
    token_ids: bool,
    echo: bool,
    dry_run: bool,
    no_stream: bool,
    stats: bool,
    batch: str | None,
    out: str | None,
    concurrency: int,
    **sampling: Any,
) -> int:
    """Continue PROMPT, and print what the model adds.

    PROMPT is `-`, or absent, to read standard input. What is piped in comes after a PROMPT that is
    given, with a blank line between.

    The model continues the text as it stands. An instruct model follows instructions better with
    --system: then the prompt is a user's message, through the model's chat template.

    With --batch, each line of FILE is a JSON object with a `prompt` or `messages`, an `id` if it
    likes, and options of the request under their names on the wire; others are those given here.
    All lines are checked before one is sent. Each answer is a line of --out, with `line` and `id`,
    as soon as it is there; the same command once more asks those that have none yet.

    \b
    Examples:
      openclawctl generate "The capital of France is" --max-tokens 8
      openclawctl generate --system "Answer briefly." "Why is the sky blue?"
      cat notes.txt | openclawctl generate --system "" "Summarise:"
      openclawctl generate --regex "[0-9]{1,4}" "Rome was founded in the year "
      openclawctl generate --json --temperature 0 --seed 1 "2 + 2 =" | jq -r .text
      openclawctl generate --dry-run --max-tokens 500 < notes.txt
      echo '{"id": "q1", "prompt": "2 + 2 =", "max_tokens": 4}' > questions.jsonl
      openclawctl generate --batch questions.jsonl --out answers.jsonl
    """
    if batch is not None:
        if prompt is not None or token_ids or echo or sampling["suffix"] is not None:
            raise click.UsageError("--batch goes with no PROMPT, --token-ids, --echo or --suffix")
        from openclawctl.cli.batch import run_batch  # here: it needs asyncio

        return run_batch(
            shell,
            batch,
            out,
            concurrency=concurrency,
            is_dry=dry_run,
            system=system,
            defaults=dict(given(sampling)),
        )
    if out is not None:
        raise click.UsageError("--out goes with --batch")
    text = _join_prompt(prompt)
    question = _Question(_parse_ids(text) if token_ids else text, system, echo=echo)
    question.check(shell, sampling)
    if dry_run:
        return _foretell(shell, question, sampling)
    is_shown = not (no_stream or shell.is_json or (sampling["n"] or 1) > 1)
    return _answer(shell, question, sampling, is_shown=is_shown, with_stats=stats)


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked: a prompt to continue, or with a system message a chat's first turn."""

    prompt: Prompt
    system: str | None
    echo: bool = field(kw_only=True)

    def check(self, shell: Shell, sampling: dict[str, Any]) -> None:
        """Raises a usage error for options that do not go together."""
        is_text = isinstance(self.prompt, str) and sampling["suffix"] is None and not self.echo
        if self.system is not None and not is_text:
            raise click.UsageError(
                "--echo, --suffix and --token-ids need a prompt without --system"
            )
        if self.system is None and sampling["reasoning"]:
            raise click.UsageError("--reasoning is of a chat: give --system, too")
        if sampling["logprobs"] and not shell.is_json:
            raise click.UsageError("--logprobs shows something with --json only")

    @property
    def messages(self) -> list[dict[str, Any]]:
        return chat_of(self.system, [{"role": "user", "content": self.prompt}])

    def open(self, client: Client, options: CompletionOptions) -> Stream:
        if self.system is None:
            return client.generate(self.prompt, stream=True, echo=self.echo, **options)
        return client.chat(self.messages, stream=True, **options)

    def foretell(self, client: Client, options: CompletionOptions) -> dict[str, Any]:
        if self.system is None:
            return client.dry_run(self.prompt, echo=self.echo, **options)
        return client.dry_run_chat(self.messages, **options)


def _foretell(shell: Shell, question: _Question, sampling: dict[str, Any]) -> int:
    from openclawctl.cli.forecast import print_forecast

    with shell.client() as client, Progress() as progress:
        options = given({**sampling, "on_event": progress.on_event})
        forecast = question.foretell(client, options)
    print_forecast(shell, forecast)
    return 0


def _answer(
    shell: Shell, question: _Question, sampling: dict[str, Any], *, is_shown: bool, with_stats: bool
) -> int:
    with shell.client() as client, Progress() as progress:
        options = given({**sampling, "on_event": progress.on_event})
        with question.open(client, options) as stream:
            is_interrupted = read_answer(stream, progress, is_shown=is_shown)
            _finish(shell, stream.result, is_shown=is_shown)
    if is_interrupted or with_stats:
        say(("interrupted: " if is_interrupted else "") + stats_line(stream.result))
    if was_cancelled(stream.result, is_interrupted=is_interrupted):
        return EXIT_INTERRUPTED
    return EXIT_FAILED if stream.result.finish_reason == "error" else 0


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise click.UsageError(
            "with --token-ids the prompt is whole numbers, with spaces or commas between"
        ) from None


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
