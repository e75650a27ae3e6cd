"""`man/openclawctl.1` has every command, every option, every error code and its exit status."""

import re
from pathlib import Path

import click
import pytest

from openclawctl import __version__
from openclawctl.cli import COMMANDS, cli
from openclawctl.wire.errors import CODES

PAGE = (Path(__file__).parents[2] / "man" / "openclawctl.1").read_text()
TEXT = re.sub(r'\\f[BIR]|"', "", PAGE).replace("\\-", "-")
CONTEXT = click.Context(cli)


def commands():
    """Every command and subcommand, by the words one types."""
    for name in COMMANDS:
        command = cli.get_command(CONTEXT, name)
        yield name, command
        if isinstance(command, click.Group):
            for inner, subcommand in command.commands.items():
                yield f"{name} {inner}", subcommand


@pytest.mark.parametrize(("name", "command"), list(commands()))
def test_every_command_with_its_options(name, command):
    section = TEXT[TEXT.index(".SH COMMANDS") : TEXT.index(".SH FILES")]
    assert all(re.search(rf"\b{word}\b", section) for word in name.split())
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            (long,) = [text for text in option.opts if text.startswith("--")]
            assert re.search(rf"{long}\b", TEXT), f"{name} {long}"


def test_the_options_of_all_commands():
    section = TEXT[TEXT.index(".SH OPTIONS") : TEXT.index(".SH COMMANDS")]
    found = set(re.findall(r"^\.BI? (--\S+)", section, re.MULTILINE))
    assert found == {option.opts[0] for option in cli.params}


@pytest.mark.parametrize("code", list(CODES))
def test_every_error_code_stands_under_its_exit_status(code):
    section = TEXT[TEXT.index(".SH EXIT STATUS") :]
    statuses = {
        int(status)
        for status, text in re.findall(r"\.TP\n\.B (\d+)\n(.*?)(?=\n\.)", section, re.DOTALL)
        if re.search(rf"[( ]{code.value}[,)]", text)
    }
    assert statuses == {CODES[code].exit_status}


def test_the_version():
    assert f"openclawd {__version__}" in PAGE
