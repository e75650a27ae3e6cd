"""Transcripts of the command line against the real daemon and the real model.

A `*.transcript` file holds blocks: `$ command`, then what it prints, line by line. A line of
standard error begins with `! `; `[exit N]` stands at the end when N is not 0; `[..]` stands for any
text within a line, a line `...` for any number of lines; `#` begins a comment outside blocks. The
commands of one file run in order, in one empty directory, with `$MODEL` naming the GGUF file.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

FOLDER = Path(__file__).parent
TIMEOUT_S = 100


class Block(NamedTuple):
    line: int
    command: str
    out: list[str]
    err: list[str]
    status: int


def read_blocks(text):
    """The blocks of a transcript."""
    blocks = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("$ "):
            blocks.append(Block(number, line[2:], [], [], 0))
        elif match := re.fullmatch(r"\[exit (\d+)\]", line):
            blocks[-1] = blocks[-1]._replace(status=int(match[1]))
        elif line.startswith("! "):
            blocks[-1].err.append(line[2:])
        elif blocks and not line.startswith("#"):
            blocks[-1].out.append(line)
    for block in blocks:
        while block.out and not block.out[-1]:  # blank lines between blocks
            block.out.pop()
    return blocks


def pattern_of(lines):
    """A regular expression for expected lines."""
    parts = [
        r"(?:.*\n)*" if line == "..." else ".*".join(map(re.escape, line.split("[..]"))) + r"\n"
        for line in lines
    ]
    return "".join(parts)


def check(block, where, env):
    answer = subprocess.run(
        ["bash", "-c", block.command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        cwd=env["PWD"],
        env=env,
    )
    story = f"{where}:{block.line}: $ {block.command}\n--- stdout\n{answer.stdout}"
    story += f"--- stderr\n{answer.stderr}--- exit {answer.returncode}"
    assert answer.returncode == block.status, story
    assert re.fullmatch(pattern_of(block.out), answer.stdout), story
    assert re.fullmatch(pattern_of(block.err), answer.stderr), story


def environment(folder, model_path, **more):
    return {**os.environ, "PWD": str(folder), "MODEL": str(model_path), **more}


@pytest.mark.parametrize("name", ["generate", "shapes", "texts", "models", "keys", "errors"])
def test_with_a_warm_daemon(name, daemon, folder, model_path):
    env = environment(folder, model_path, OPENCLAWD_SOCKET=str(daemon.socket))
    file = FOLDER / f"{name}.transcript"
    for block in read_blocks(file.read_text()):
        check(block, file.name, env)


def test_daemon_of_one_s_own(folder, model_path):
    env = environment(folder, model_path, OPENCLAWD_SOCKET=str(folder / "s"))
    file = FOLDER / "daemon.transcript"
    try:
        for block in read_blocks(file.read_text()):
            check(block, file.name, env)
    finally:
        subprocess.run(["openclawctl", "daemon", "stop"], env=env, capture_output=True, check=False)


def test_every_transcript_is_run():
    run = {"generate", "shapes", "texts", "models", "keys", "errors", "daemon"}
    assert {file.stem for file in FOLDER.glob("*.transcript")} == run


def test_transcript_format():
    text = "# note\n$ a\nout\n! err\n[exit 3]\n\n$ b\n...\nx [..] z\n"
    first, second = read_blocks(text)
    assert first == Block(2, "a", ["out"], ["err"], 3)
    assert second == Block(7, "b", ["...", "x [..] z"], [], 0)
    assert re.fullmatch(pattern_of(second.out), "1\n2\nx y z\n")
    assert not re.fullmatch(pattern_of(second.out), "x z\n")


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]))))
def test_plain_lines_match_themselves_only(lines):
    lines = [line for line in lines if line != "..." and "[..]" not in line]
    text = "".join(f"{line}\n" for line in lines)
    assert re.fullmatch(pattern_of(lines), text)
    assert not re.fullmatch(pattern_of(lines), text + "more\n")
