"""What reaches a terminal, a pipe and a JSON reader; what importing the command line costs."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import unicodedata

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawctl import cli
from openclawctl.cli import shell
from openclawctl.cli.models import _count


@given(st.text())
def test_nothing_printable_is_a_control_character(text):
    for character in shell.printable(text):
        assert character in "\n\t" or unicodedata.category(character) != "Cc"


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"])))
def test_ordinary_text_is_left_alone(text):
    assert shell.printable(text) == text


# Reads the same text as one JSON value, and as text that a terminal would obey.
@given(st.dictionaries(st.text(), st.text() | st.floats(allow_nan=False) | st.none()))
def test_json_output_is_json_without_control_characters(value):
    captured = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", _Collector(captured))
        shell.print_json(value)
    text = "".join(captured)
    assert json.loads(text) == value
    assert not [c for c in text if unicodedata.category(c) == "Cc" and c != "\n"]


class _Collector:
    def __init__(self, pieces):
        self.write = pieces.append

    def flush(self):
        pass


def test_table_columns_are_aligned(capsys):
    shell.print_table(["NAME", "COUNT"], [["a", "1"], ["bcdefg", "100"]], right="COUNT")
    assert capsys.readouterr().out == "NAME    COUNT\na           1\nbcdefg    100\n"


@given(st.text())
def test_a_cell_is_one_line_and_as_wide_as_its_text(text):
    header, row = shell.table_lines(["A", "B"], [[text, "x"]])
    assert row.isprintable()
    assert row == shell.one_line(text).ljust(max(1, len(text))) + "  x"
    assert header.index("B") == row.rindex("x")


@given(st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" ")))
def test_an_ordinary_cell_is_left_alone(text):
    assert shell.one_line(text) == text


@pytest.mark.parametrize("spoilt", ["m\nroot", "m\troot", "m\rroot", "m\u202eroot", "m\u2028root"])
@pytest.mark.parametrize("command", ["models", "ps"])
def test_no_file_name_forges_a_row(peer, ctl, command, spoilt):
    """A model has the name of its file, which may have a line break in it."""
    model = {"name": spoilt, "state": "ready"}
    peer(handler=lambda connection, request: connection.done(request, models=[model]))
    _, *rows = ctl(command).out.split("\n")
    assert [row.split()[:1] for row in rows] == [["m\ufffdroot"], []]


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "-"), (0, "-"), (12, "12"), (134_515_008, "135M"), (7_240_000_000, "7.2B")],
)
def test_parameter_counts(number, text):
    assert _count(number) == text


def test_every_command_of_the_table_exists_and_documents_itself():
    group = cli.cli
    for name in cli.COMMANDS:
        command = group.get_command(None, name)
        assert command is not None
        assert command.help, name
        assert command.name in (name, cli._ALIASES.get(name))


def context_of(command, name="openclawctl", parent=None):
    return click.Context(command, info_name=name, parent=parent, **command.context_settings)


def commands(context):
    """The contexts of a command and all its subcommands."""
    yield context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            yield from commands(context_of(command, name, context))


def parse(context, words):
    """Raises a usage error for an option or a subcommand that there is not."""
    _, rest, _ = context.command.make_parser(context).parse_args(words)
    if isinstance(context.command, click.Group) and rest:
        name, command, rest = context.command.resolve_command(context, rest)
        parse(context_of(command, name, context), rest)


@pytest.mark.parametrize(
    "context", list(commands(context_of(cli.cli))), ids=lambda context: context.command_path
)
def test_every_help_has_examples_and_they_have_options_that_exist(context):
    _, _, after = context.command.get_help(context).partition("\n  Example")
    examples = after.partition("\n\n")[0]
    assert "openclawctl" in examples
    for words in re.findall(r"openclawctl( [^|;&<>\n]*)", examples):
        parse(context_of(cli.cli), shlex.split(words))


def test_help_works_everywhere(capsys):
    for name in cli.COMMANDS:
        assert cli.run([name, "-h"]) == 0
    assert "Exit status: 0 ok" in _help_of_the_group(capsys)


def _help_of_the_group(capsys):
    capsys.readouterr()
    cli.run(["--help"])
    return capsys.readouterr().out


def test_status_imports_nothing_that_it_does_not_need():
    program = (
        "import sys; from openclawctl.cli import run; run(['--socket', '/none', 'status']);"
        "print(*{'rich', 'asyncio', 'platformdirs', 'json', 'subprocess', 'llama_cpp',"
        " 'openclawctl.wire.operations', 'openclawd'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.strip() == ""


def run_in_shell(socket, redirections, *arguments):
    command = [sys.executable, "-m", "openclawctl", "--socket", str(socket), *arguments]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@pytest.mark.parametrize(
    ("redirections", "status", "error"),
    [
        (">/dev/full", 1, "cannot write to standard output: No space left on device"),
        (">&-", 1, "cannot write to standard output: Bad file descriptor"),
        ("<&-", 0, ""),
        ("2>&-", 0, ""),
    ],
)
def test_standard_streams_that_are_full_or_closed(daemon, redirections, status, error):
    done = run_in_shell(daemon.socket, redirections, "status")
    assert done.returncode == status
    assert error in done.stderr
    assert "Traceback" not in done.stderr


FULL = "openclawctl: error: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("ps", "--json"),
        ("models", "--json"),
        ("generate", "--json", "--max-tokens", "1", "hi"),
        ("generate", "--max-tokens", "1", "hi"),
        ("--help",),
        ("generate", "--help"),
        ("--version",),
    ],
)
def test_a_full_disk_is_told_whatever_is_printed(daemon, arguments):
    done = run_in_shell(daemon.socket, ">/dev/full", *arguments)
    assert (done.returncode, done.stderr) == (1, FULL)


def test_help_where_standard_output_is_closed():
    done = run_in_shell("/none", ">&-", "--help")
    assert done.returncode == 1
    assert done.stderr.endswith("cannot write to standard output: Bad file descriptor\n")
    assert "Traceback" not in done.stderr


def test_an_error_that_a_full_disk_does_not_take():
    done = run_in_shell("/none", ">/dev/full", "ps", "--json")
    assert done.returncode == 3
    assert done.stderr.startswith(f"{FULL}openclawctl: error: there is no socket at /none")


def test_an_error_whose_reader_has_left():
    command = [sys.executable, "-m", "openclawctl", "--socket", "/none", "ps", "--json"]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=30
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (3, "")
