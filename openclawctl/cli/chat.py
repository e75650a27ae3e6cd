"""`openclawctl chat`: a conversation on a terminal, or one turn from a pipe.

The history lives in this process and ends with it; nothing is written to disk.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import click

from openclawctl.cli.answer import Progress, chat_of, read_answer, stats_line, was_cancelled
from openclawctl.cli.inputs import is_stdin_piped, read_stdin
from openclawctl.cli.sampling import GroupedCommand, given, sampling_options
from openclawctl.cli.shape import shape_options
from openclawctl.cli.shell import (
    OutputFailed,
    Shell,
    adapter_option,
    json_option,
    label_options,
    model_option,
    print_json,
    say,
    say_error,
    scheduling_options,
    write,
)
from openclawctl.wire.errors import EXIT_INTERRUPTED, OpenclawError
from openclawctl.wire.fields import suggestion

if TYPE_CHECKING:
    from collections.abc import Callable

    from openclawctl.client import Client
    from openclawctl.results import Completion

_HELP: Final = '''/help           this list
/clear          forget the conversation, keep the system message
/system [TEXT]  show or set the system message; the conversation starts anew
/model [NAME]   show or choose the model
/stats          token counts and times of the last answer
/exit           leave, as Ctrl-D does
Ctrl-C stops an answer. A line that ends with \\ goes on; """ starts and ends a text of several
lines. A message that begins with / is written with //.'''

_QUOTES: Final = '"""'


@dataclass
class Conversation:
    """What was said so far, and how to answer. `options` are the sampling options."""

    client: Client
    options: dict[str, Any]
    model: str | None = None
    system: str | None = None
    turns: list[dict[str, Any]] = field(default_factory=list)
    last: Completion | None = None

    def ask(self, text: str, *, is_shown: bool) -> bool:
        """One turn. Returns whether Ctrl-C ended it. A turn that fails leaves no trace."""
        self.turns.append({"role": "user", "content": text})
        try:
            is_interrupted = self._answer(is_shown=is_shown)
        except BaseException:
            self.turns.pop()
            raise
        assert self.last is not None
        self.turns.append(self.last.message)
        return is_interrupted

    def _answer(self, *, is_shown: bool) -> bool:
        with Progress() as progress:
            options = given({"model": self.model, **self.options, "on_event": progress.on_event})
            messages = chat_of(self.system, self.turns)
            with self.client.chat(messages, stream=True, **options) as stream:
                is_interrupted = read_answer(stream, progress, is_shown=is_shown)
                self.last = stream.result
        return is_interrupted


@click.command("chat", cls=GroupedCommand)
@model_option
@adapter_option
@click.option("--system", "-s", metavar="TEXT", help="The system message.")
@shape_options
@sampling_options
@scheduling_options
@label_options
@click.option("--stats", is_flag=True, help="Print token counts and times after each answer.")
@json_option
@click.pass_obj
def chat_command(
    shell: Shell,
    /,
    model: str | None,
    system: str | None,
    stats: bool,  # noqa: FBT001 - click passes by name
    **sampling: Any,
) -> int:
    """Talk with a model. Type /help for what else can be typed.

    With a pipe instead of a terminal, all of standard input is one message.

    \b
    Examples:
      openclawctl chat --system "You are a patient teacher."
      echo "Name three rivers." | openclawctl chat --max-tokens 64
    """
    with shell.client() as client:
        conversation = Conversation(client, sampling, model, system)
        if is_stdin_piped() or shell.is_json:
            return _one_turn(shell, conversation, stats=stats)
        return _converse(conversation, stats=stats)


def _one_turn(shell: Shell, conversation: Conversation, *, stats: bool) -> int:
    text = read_stdin().strip()
    if not text:
        raise click.UsageError("standard input is empty; it should hold the message")
    is_interrupted = conversation.ask(text, is_shown=not shell.is_json)
    assert conversation.last is not None
    if shell.is_json:
        print_json(conversation.last.as_dict())
    else:
        write("\n")
    if stats or is_interrupted:
        say(stats_line(conversation.last))
    was_ended = was_cancelled(conversation.last, is_interrupted=is_interrupted)
    return EXIT_INTERRUPTED if was_ended else 0


def _converse(conversation: Conversation, *, stats: bool) -> int:
    _enable_line_editing()
    say("/help lists what can be typed; Ctrl-D ends.")
    while (text := _read_message()) is not None:
        if not text.strip():
            continue
        if text.startswith("/") and not text.startswith("//"):
            if _command(conversation, text):
                return 0
            continue
        _turn(conversation, text.removeprefix("/") if text.startswith("//") else text, stats=stats)
    return 0


def _turn(conversation: Conversation, text: str, *, stats: bool) -> None:
    try:
        is_interrupted = conversation.ask(text, is_shown=True)
    except OutputFailed:
        raise  # of every later answer nothing would be seen either
    except OpenclawError as error:
        say_error(error.message, error.hint, program="")
        return
    write("\n")
    assert conversation.last is not None
    if stats or is_interrupted:
        say(("stopped: " if is_interrupted else "") + stats_line(conversation.last))
    was_cancelled(conversation.last, is_interrupted=is_interrupted)


def _enable_line_editing() -> None:
    """History and editing keys in `input()`, where Python was built with them."""
    try:
        import readline  # noqa: F401 - importing it is what changes input()
    except ImportError:
        say("(no line editing: this Python has no readline)")


def _read_message() -> str | None:
    """The next message, of several lines if it says so. None at the end of input."""
    try:
        line = input("> ")
        if line.startswith(_QUOTES):
            return _read_until_quotes(line.removeprefix(_QUOTES))
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(input(". "))
        return "\n".join(lines)
    except KeyboardInterrupt:
        say("\n(Ctrl-D or /exit leaves)")
        return ""
    except EOFError:
        sys.stdout.write("\n")
        return None


def _read_until_quotes(first: str) -> str:
    lines = [first]
    while not lines[-1].endswith(_QUOTES):
        lines.append(input(". "))
    lines[-1] = lines[-1].removesuffix(_QUOTES)
    return "\n".join(lines).strip("\n")


def _command(conversation: Conversation, text: str) -> bool:
    """Carry out `/name argument`. Returns whether to leave."""
    name, _, argument = text[1:].partition(" ")
    if name in ("exit", "quit"):
        return True
    command = _COMMANDS.get(name)
    if command is None:
        say(f"unknown command /{name}{suggestion(name, [*_COMMANDS, 'exit'])}; see /help")
    else:
        command(conversation, argument.strip())
    return False


def _clear(conversation: Conversation, argument: str) -> None:
    del argument
    conversation.turns.clear()
    say("(forgotten)")


def _system(conversation: Conversation, argument: str) -> None:
    if argument:
        conversation.system = argument
        conversation.turns.clear()
    say(f"system message: {conversation.system or '(none)'}")


def _model(conversation: Conversation, argument: str) -> None:
    if argument:
        conversation.model = argument
    answered = f"; the last answer is {conversation.last.model}'s" if conversation.last else ""
    say(f"model: {conversation.model or '(the default)'}{answered}")


def _stats(conversation: Conversation, argument: str) -> None:
    del argument
    say(stats_line(conversation.last) if conversation.last else "(no answer yet)")


def _help(conversation: Conversation, argument: str) -> None:
    del conversation, argument
    say(_HELP)


_COMMANDS: Final[dict[str, Callable[[Conversation, str], None]]] = {
    "help": _help,
    "clear": _clear,
    "system": _system,
    "model": _model,
    "stats": _stats,
}
