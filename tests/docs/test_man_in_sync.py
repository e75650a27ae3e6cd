"""The manual pages: every command, option, key and error code is in them, and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from openclawctl import __version__
from openclawctl.cli import COMMANDS, cli
from openclawctl.wire.connection import MAY_SEND
from openclawctl.wire.errors import CODES
from openclawctl.wire.operations import Op
from openclawd.config.reference import all_keys

ROOT = Path(__file__).parents[2]
MAN = ROOT / "man"
CONTEXT = click.Context(cli)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
PROGRAMS = {
    "openclawd": "openclawd",
    "openclawd-fetch": "openclawd.fetch",
    "openclawd-metrics": "openclawd.metrics",
    "openclawd-notify": "openclawd.notify",
}


def plain(file):
    """A page without fonts, requests' quotes and escaped hyphens."""
    return re.sub(r'\\f[BIRP]|"', "", (MAN / file).read_text()).replace("\\-", "-")


PAGE = plain("openclawctl.1")


def section(text, title):
    """From one `.SH` to the next."""
    (found,) = re.findall(rf"^\.SH {title}\n(.*?)(?=^\.SH |\Z)", text, re.MULTILINE | re.DOTALL)
    return found


# ---- openclawctl(1) ----


def commands():
    """Every command and subcommand, by the words one types."""
    for name in COMMANDS:
        command = cli.get_command(CONTEXT, name)
        yield name, command
        if isinstance(command, click.Group) and command.name == name:  # no other name of one
            for inner, subcommand in command.commands.items():
                yield f"{name} {inner}", subcommand


def entries():
    """The entries of the section COMMANDS: what is typed, without its options, and the whole."""
    text = section(PAGE, "COMMANDS").partition("\n.SS ")[0]
    for entry in re.split(r"^\.TP\n", text, flags=re.MULTILINE)[1:]:
        tag = entry.partition("\n")[0]
        yield re.sub(r"\[.*?\]", " ", re.sub(r"^\.\w+ ", "", tag)), entry


ENTRIES = list(entries())
COMMON = section(PAGE, "COMMANDS").partition("\n.SS ")[2]
"""The options that several commands share, each with the commands' names."""


def entries_of(name):
    """Those whose tag has the command's words."""
    words = name.split()
    return [
        entry
        for tag, entry in ENTRIES
        if all(re.search(rf"(?<![\w-]){word}(?![\w-])", tag) for word in words)
    ]


def options_of(command):
    return {
        text
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden
        for text in (*option.opts, *option.secondary_opts)
        if text.startswith("--")
    }


@pytest.mark.parametrize(("name", "command"), list(commands()))
def test_every_command_has_an_entry_with_its_options(name, command):
    if isinstance(command, click.Group) and not command.invoke_without_command:
        return  # its subcommands have entries
    found = entries_of(name)
    assert found, f"openclawctl(1) has no entry for `{name}`"
    written = set(OPTION.findall("".join(found))) | set(OPTION.findall(COMMON)) | {"--json"}
    assert options_of(command) <= written, name


@pytest.mark.parametrize(("tag", "entry"), ENTRIES)
def test_no_entry_has_an_option_that_does_not_exist(tag, entry):
    there = {"--json"}
    for name, command in commands():
        if entry in entries_of(name):
            there |= options_of(command)
    assert len(there) > 1 or not OPTION.findall(entry), f"{tag!r} is no command"
    assert set(OPTION.findall(entry)) <= there


def test_the_shared_options_exist():
    there = set().union(*(options_of(command) for _, command in commands()))
    assert set(OPTION.findall(COMMON)) <= there


def test_the_options_of_all_commands():
    found = set(re.findall(r"^\.BI? (--\S+)", section(PAGE, "OPTIONS"), re.MULTILINE))
    assert found == {option.opts[0] for option in cli.params}


@pytest.mark.parametrize("code", list(CODES))
def test_every_error_code_stands_under_its_exit_status(code):
    statuses = {
        int(status)
        for status, text in re.findall(
            r"^\.B (\d+)\n(.*?)(?=^\.|\Z)", section(PAGE, "EXIT STATUS"), re.DOTALL | re.MULTILINE
        )
        if re.search(rf"[(\s]{code.value}[,)]", text)
    }
    assert statuses == {CODES[code].exit_status}


# ---- the programs of section 8 ----


@pytest.mark.parametrize("name", list(PROGRAMS))
def test_the_options_of_a_program(name):
    told = subprocess.run(
        [sys.executable, "-m", PROGRAMS[name], "--help"], capture_output=True, text=True, check=True
    )
    there = set(OPTION.findall(told.stdout.partition("options:")[2]))
    tags = re.findall(r"^\.TP\n(.*)", section(plain(f"{name}.8"), "OPTIONS"), re.MULTILINE)
    assert set(OPTION.findall(" ".join(tags))) == there


# ---- what is made from docs/ ----


def test_the_pages_are_what_docs_says():
    sys.path.insert(0, str(MAN))
    try:
        import page
    finally:
        sys.path.remove(str(MAN))
    for each in page.PAGES:
        assert each.file.read_text() == page.rendered(each), "run: python man/page.py"


def test_every_configuration_key():
    text = plain("openclawd.yaml.5")
    tags = set(re.findall(r"^\.TP\n(\w+)$", text, re.MULTILINE))
    assert {info.path.rpartition(".")[2] for info in all_keys()} <= tags


def test_the_protocol():
    tags = set(re.findall(r"^\.TP\n(.+)$", plain("openclawd-protocol.7"), re.MULTILINE))
    assert {code.value for code in CODES} <= tags
    first_words = {tag.split()[0] for tag in tags}
    assert {op.value for op in Op} <= first_words
    types = {kind.type for allowed in MAY_SEND.values() for kind in allowed}
    assert types <= first_words


# ---- all of them ----


@pytest.mark.parametrize("file", sorted(path.name for path in MAN.glob("*.[1-8]")))
def test_a_page_is_of_this_version_and_clean(file):
    assert f'"openclawd {__version__}"' in (MAN / file).read_text()
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not installed")
    done = subprocess.run(
        ["mandoc", "-T", "lint", MAN / file], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_every_program_has_a_page():
    scripts = re.findall(r"^(openclaw[\w-]*) = ", (ROOT / "pyproject.toml").read_text(), re.M)
    names = {path.name.rpartition(".")[0] for path in MAN.glob("*.[1-8]")}
    assert set(scripts) <= names
