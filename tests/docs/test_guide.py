"""README and guide: their commands exist. `tests/system/test_guide.py` runs them on a machine."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from guide import PAGES, blocks

from openclawctl.cli import COMMANDS, cli
from openclawd.config import load_config

ROOT = Path(__file__).parents[2]
BLOCKS = blocks()


def calls():
    """Every call of `openclawctl` in a block, as words."""
    for block in BLOCKS:
        text = re.sub(r"<<'END'\n.*?\nEND\n", "\n", block.text, flags=re.DOTALL)
        text = text.replace("\\\n", " ")
        for line in text.splitlines():
            for words in simple_commands(line):
                if words[:1] == ["openclawctl"]:
                    yield pytest.param(words[1:], id=f"{block.place}-{' '.join(words[:3])}")


def simple_commands(line):
    """A line of shell, divided at pipes, redirections and the like."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&<>")
    lexer.whitespace_split = True
    found = [[]]
    for word in lexer:
        if set(word) <= set("|;&<>"):
            found.append([])
        else:
            found[-1].append(word)
    return found


@pytest.mark.parametrize("words", list(calls()))
def test_every_command_is_one_with_these_options(words):
    name, *rest = without_global_options(words)
    assert name in COMMANDS
    command = cli.get_command(click.Context(cli), name)
    if isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands
        command, rest = command.commands[rest[0]], rest[1:]
    known = {option for parameter in command.params for option in parameter.opts} | {"-h"}
    for word in rest:
        if re.match(r"--?[a-z]", word):
            assert word.partition("=")[0] in known, word


def without_global_options(words):
    options = {option: parameter for parameter in cli.params for option in parameter.opts}
    while words[0].startswith("-"):
        words = words[1 if options[words[0]].is_flag else 2 :]
    return words


def test_the_configuration_of_the_guide_is_valid(tmp_path):
    text = "".join(
        match
        for block in BLOCKS
        for match in re.findall(
            r"/etc/openclawd/openclawd.yaml <<'END'\n(.*?)^END$", block.text, re.M | re.S
        )
    )
    (tmp_path / "c.yaml").write_text(text)
    config = load_config(tmp_path / "c.yaml")
    assert list(config.models) == ["smollm2"]
    assert [budget.name for budget in config.budgets] == ["shop"]


def test_every_note_is_one_that_is_understood():
    notes = [
        note
        for page in PAGES
        for note in re.findall(r"^<!-- (.*?) -->\n```sh", (ROOT / page).read_text(), re.M)
    ]
    assert all(re.fullmatch(r"as [a-z]+|run by \.ci/run", each) for each in notes)


def test_root_types_most():
    assert sum(block.user == "root" for block in BLOCKS) >= 15


def test_ci_runs_what_the_pages_leave_to_it():
    sections = [block.section for block in BLOCKS if block.is_run_by_ci]
    ci = (ROOT / ".ci" / "run").read_text()
    assert sections == re.findall(r'^type_in "(.*?)"', ci, re.M) == ["Try it", "Install"]


def test_the_commands_of_a_section_are_printed():
    command = [sys.executable, ROOT / "tests" / "guide.py", "Try it"]
    lines = subprocess.check_output(command, text=True).splitlines()
    assert [line.partition("#")[0].rstrip() for line in lines] == ["make demo", "make test"]
    assert subprocess.run([*command[:2], "None"], stderr=subprocess.PIPE, check=False).returncode


def test_links_lead_somewhere():
    for page in PAGES:
        folder = (ROOT / page).parent
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
            assert (folder / target).exists(), f"{page}: {target}"
