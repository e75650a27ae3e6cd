"""How records look, and that nothing a caller names can forge one."""

import json
import logging
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawd.observe.formats import (
    ConsoleFormatter,
    JournalFormatter,
    JsonFormatter,
    SyslogFormatter,
    journal_fields,
)
from openclawd.printable import printable


def record(text="hello %s", *args, level=logging.INFO, exc_info=None, **fields):
    made = logging.LogRecord(
        "openclawd.server.peer", level, "/src/peer.py", 7, text, args, exc_info, func="f"
    )
    made.created = 1_700_000_000.25
    made.fields = fields
    return made


def raised():
    try:
        raise ValueError("bad\n2026-01-01 00:00:00.000 ERROR forged: line\x1b[2J")
    except ValueError:
        return sys.exc_info()


def test_console():
    line = ConsoleFormatter().format(record("hello %s", "you", model="m", ttft_s=0.1234567891))
    assert re.fullmatch(
        r"2023-11-1\d \d\d:\d\d:20\.250 INFO    server\.peer: hello you model=m ttft_s=0\.123457",
        line,
    )


def test_json():
    text = JsonFormatter().format(record("hello %s", "you", model="m", message="forged", n=None))
    assert json.loads(text) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "logger": "openclawd.server.peer",
        "message": "hello you",
        "model": "m",
    }


def test_a_message_id_goes_to_the_journal_only():
    made = record("hello", message_id="abc", model="m")
    assert "abc" not in ConsoleFormatter().format(made)
    assert "message_id" not in json.loads(JsonFormatter().format(made))
    assert dict(journal_fields(made, "x"))["MESSAGE_ID"] == "abc"


def test_a_traceback_is_set_in_and_cannot_forge_a_line():
    lines = ConsoleFormatter().format(record("oh", exc_info=raised())).splitlines()
    assert lines[1] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") for line in lines[1:])
    assert lines[-1] == "    2026-01-01 00:00:00.000 ERROR forged: line\\x1b[2J"


def test_json_carries_the_traceback_in_a_field():
    entry = json.loads(JsonFormatter().format(record("oh", exc_info=raised())))
    assert entry["exception"].startswith("Traceback")
    assert "\n" not in JsonFormatter().format(record("oh", exc_info=raised()))


def test_syslog_is_always_one_line():
    text = SyslogFormatter().format(record("oh", exc_info=raised(), model="m"))
    assert text.startswith("server.peer: oh model=m | Traceback (most recent call last):\\n")
    assert len(text.splitlines()) == 1


def test_no_traceback_where_nothing_was_raised():
    assert "\n" not in ConsoleFormatter().format(record("oh", exc_info=(None, None, None)))


@pytest.mark.parametrize(
    ("level", "priority"),
    [
        (logging.CRITICAL, "2"),
        (logging.ERROR, "3"),
        (logging.WARNING, "4"),
        (logging.INFO, "6"),
        (logging.DEBUG, "7"),
        (logging.INFO + 5, "6"),
    ],
)
def test_journal_priorities(level, priority):
    assert dict(journal_fields(record(level=level), ""))["PRIORITY"] == priority


def test_journal_fields():
    made = record("hello %s", "you", request_id="r1", prompt_tokens=5)
    assert dict(journal_fields(made, JournalFormatter().format(made))) == {
        "MESSAGE": "server.peer: hello you request_id=r1 prompt_tokens=5",
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "openclawd",
        "LOGGER": "openclawd.server.peer",
        "CODE_FILE": "/src/peer.py",
        "CODE_LINE": "7",
        "CODE_FUNC": "f",
        "REQUEST_ID": "r1",
        "PROMPT_TOKENS": "5",
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("m", "m"),
        ("a b", '"a b"'),
        ("", '""'),
        ("a=b", '"a=b"'),
        ('say "hi"', '"say \\"hi\\""'),
        ("a\\", "a\\"),
        ("a \\", '"a \\\\"'),
        (True, "True"),
        (1.0, "1.0"),
        (["x"], "['x']"),
    ],
)
def test_quoting_of_fields(value, text):
    assert ConsoleFormatter().format(record("hi", field=value)).endswith(f" hi field={text}")


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain ü 漢", "plain ü 漢"),
        ("a\nb\r\0\x1b[31m", "a\\nb\\r\\x00\\x1b[31m"),
        ("right\u202eleft", "right\\u202eleft"),
        ("half \ud800", "half \\ud800"),
        ("line\u2028line", "line\\u2028line"),
    ],
)
def test_printable(text, escaped):
    assert printable(text) == escaped


ANY_TEXT = st.text(st.characters(), max_size=40)  # half characters included


@given(message=ANY_TEXT, name=ANY_TEXT)
def test_nothing_a_caller_names_makes_a_second_line(message, name):
    made = record("%s", message, client=name)
    for formatter in (ConsoleFormatter(), JournalFormatter(), SyslogFormatter(), JsonFormatter()):
        text = formatter.format(made)
        assert len(text.splitlines()) == 1
        assert text.isprintable()
        text.encode()
    assert json.loads(JsonFormatter().format(made))["client"] == name


@given(name=ANY_TEXT)
def test_a_field_cannot_forge_another(name):
    text = ConsoleFormatter().format(record("hi", client=name, model="real"))
    outside_quotes = re.sub(r'"(?:\\.|[^"\\])*"', "", text)
    assert outside_quotes.count(" model=") == 1
