"""What commands read whole: standard input and files, and what is no text of a request."""

from __future__ import annotations

import sys

import pytest

from openclawctl import cli
from openclawctl.cli import inputs

NO_JSON = "s.json is no JSON: "
NO_OBJECT = "s.json is JSON, but no JSON object; a schema is one, such as "


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "hi"),
        ("generate", "-"),
        ("chat",),
        ("embed",),
        ("tokenize",),
        ("detokenize",),
        ("classify",),
        ("rerank", "query"),
    ],
)
def test_standard_input_without_an_end(peer, capsys, monkeypatch, command):
    running = peer(handler=None)
    with open("/dev/zero") as endless:
        monkeypatch.setattr(sys, "stdin", endless)
        assert cli.run(command) == 2
    assert "error: standard input has more than 64.0 MiB, and no text" in capsys.readouterr().err
    assert not running.requests


def test_standard_input_that_cannot_be_read(capsys, monkeypatch):
    with open("/proc/self/mem") as unreadable:
        monkeypatch.setattr(sys, "stdin", unreadable)
        assert cli.run(["embed"]) == 2
    assert "error: standard input cannot be read: Input/output error\n" in capsys.readouterr().err


def test_standard_input_up_to_the_limit(tmp_path, monkeypatch):
    text = tmp_path / "text"
    text.touch()
    with text.open("r+") as file:
        file.truncate(inputs.MAX_INPUT_BYTES)
        monkeypatch.setattr(sys, "stdin", file)
        assert len(inputs.read_stdin()) == inputs.MAX_INPUT_BYTES


@pytest.mark.parametrize("option", ["--json-schema", "--grammar"])
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_a_file_without_an_end(ctl, command, option):
    answer = ctl(command, option, "/dev/zero", stdin="hi")
    assert answer.status == 2
    assert "error: /dev/zero has more than 64.0 MiB, and no text of a request" in answer.err


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            b"{not json",
            f"{NO_JSON}Expecting property name enclosed in double quotes: line 1 column 2",
        ),
        (b'{"type":\r\n}', f"{NO_JSON}Expecting value: line 2 column 1"),
        (b"", f"{NO_JSON}Expecting value: line 1 column 1"),
        (b"[]", 's.json is JSON, but no JSON object; a schema is one, such as {"type": "object"}'),
        (b"true", NO_OBJECT),
        (b'{"minimum": ' + b"9" * 5000 + b"}", "s.json cannot be read as JSON: "),
        (b"[" * 100_000, "s.json cannot be read as JSON: "),
        (b"\xff", "s.json is not UTF-8 text (byte 0)"),
    ],
)
def test_a_schema_that_is_none(ctl, tmp_path, monkeypatch, content, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.json").write_bytes(content)
    answer = ctl("generate", "hi", "--json-schema", "s.json")
    assert answer.status == 2
    assert f"openclawctl: error: {problem}" in answer.err
    assert "hint: see `openclawctl generate --help`\n" in answer.err


def test_a_file_that_cannot_be_read(ctl):
    answer = ctl("generate", "hi", "--grammar", "/proc/self/mem")
    assert answer.status == 2
    assert "error: /proc/self/mem cannot be read: Input/output error\n" in answer.err


def test_lines_of_a_file_end_with_newlines(tmp_path):
    file = tmp_path / "words"
    file.write_bytes(b"a\r\nb\rc\n")
    assert inputs.read_file(file) == "a\nb\nc\n"
