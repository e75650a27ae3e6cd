"""`generate --batch` and `--dry-run` against a scripted daemon."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import click
import pytest
from cli.conftest import PROGRAM
from cli.test_terminal import TIMEOUT_S, Terminal

from openclawctl.cli import batch_files
from openclawctl.wire.errors import BudgetExceeded, OpenclawError, PromptTooLong

LINES = [
    {"id": "a", "prompt": "one", "max_tokens": 3},
    {"messages": [{"role": "user", "content": "two"}], "temperature": 0},
    {"id": 7, "prompt": [1, 2, 3], "logit_bias": {"5": -1.5}},
]


@pytest.fixture
def files(tmp_path):
    """The file of requests, with these lines, and the one of answers."""

    def write(*lines):
        path = tmp_path / "in.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("".join(f"{text}\n" for text in texts))
        return str(path), str(tmp_path / "out.jsonl")

    return write


@pytest.fixture
def daemon(peer, wire):
    """Answers everything with "!", but prompts that it is given problems for."""

    def start(problems=None, *, cost=None):
        def handler(connection, request):
            prompt = request.params.get("prompt")
            if request.op == "usage":
                row = {"key": "batch in.jsonl", "cost": cost or 0}
                other = {"key": "another", "cost": 99}
                currency = "EUR" if cost else None
                connection.done(request, rows=[row, other], currency=currency)
            elif isinstance(prompt, str) and prompt in (problems or {}):
                connection.error(request, problems[prompt])
            elif request.params.get("dry_run"):
                price = {"currency": "EUR", "total": 1500, "prompt": 500, "per_second": 0}
                connection.done(request, prompt_tokens=5, completion_tokens=10, cost=price)
            else:
                connection.complete(request, "!")

        return peer(handler=handler)

    return start


def answers_in(path):
    with open(path) as file:
        return {answer["line"]: answer for answer in map(json.loads, file)}


def asked(running):
    return [request for request in running.requests if request.op in ("generate", "chat")]


def test_every_line_is_answered_once(daemon, ctl, files):
    running = daemon(cost=1_234_000)
    path, out = files(LINES[0], "", *LINES[1:])
    answer = ctl("generate", "--batch", path, "--out", out, "--max-tokens", "9")
    assert (answer.status, answer.err) == (0, "")
    first, second = answer.out.splitlines()
    assert first.startswith("3 of 3 answered in ")
    assert second == ("15 prompt tokens (6 cached), 9 completion tokens, 1.234 EUR")
    found = answers_in(out)
    assert {line: (each["id"], each["text"]) for line, each in found.items()} == {
        1: ("a", "!"),
        3: (None, "!"),
        4: (7, "!"),
    }
    sent = {json.dumps(request.params.get("prompt")): request for request in asked(running)}
    assert sent['"one"'].params["max_tokens"] == 3
    assert sent["null"].op == "chat"
    assert sent["null"].params["max_tokens"] == 9
    assert sent["[1, 2, 3]"].params["logit_bias"] == [[5, -1.5]]
    assert {request.params["session"] for request in asked(running)} == {"batch in.jsonl"}
    assert {request.params["priority"] for request in asked(running)} == {"batch"}

    again = ctl("generate", "--batch", path, "--out", out, "--max-tokens", "9", "--json")
    assert len(asked(running)) == 3
    summary = json.loads(again.out)
    assert (summary["answered"], summary["skipped"], summary["not_asked"]) == (0, 3, 0)


def test_what_failed_is_told_and_asked_again(daemon, ctl, files):
    running = daemon({"one": PromptTooLong("the prompt has 9 tokens")})
    path, out = files(*LINES)
    answer = ctl("generate", "--batch", path, "--out", out)
    assert answer.status == 1
    assert answer.err == "openclawctl: line 1 failed: the prompt has 9 tokens\n"
    assert answer.out.startswith("2 of 3 answered in ")
    assert "; 1 failed\n" in answer.out
    assert set(answers_in(out)) == {2, 3}
    summary = json.loads(ctl("generate", "--batch", path, "--out", out, "--json").out)
    assert len(asked(running)) == 4
    assert summary["failures"] == [
        {"line": 1, "id": "a", "code": "prompt-too-long", "message": "the prompt has 9 tokens"}
    ]


def test_what_would_befall_every_line_ends_the_batch(daemon, ctl, files):
    running = daemon({"one": BudgetExceeded("budget b is used up", hint="wait")})
    path, out = files(*LINES)
    answer = ctl("generate", "--batch", path, "--out", out, "--concurrency", "1")
    assert answer.status == 5
    assert answer.out.startswith("0 of 3 answered in ")
    assert "; 3 were not asked\n" in answer.out
    assert "openclawctl: error: budget b is used up\n" in answer.err
    assert "hint: wait; the same command goes on where this one ended\n" in answer.err
    assert len(asked(running)) == 1


def test_bad_lines_are_named_before_anything_is_sent(daemon, ctl, files):
    running = daemon()
    path, out = files(
        LINES[0],
        '{"id": 1,',
        "[]",
        {"prompt": "x", "messages": []},
        {"prompt": "x", "temprature": 1},
        {"prompt": "x", "top_p": 7},
        {"prompt": "x", "stream": True},
        {"messages": "x"},
    )
    answer = ctl("generate", "--batch", path, "--out", out)
    assert answer.status == 2
    assert answer.out == ""
    not_json, *others, _ = answer.err.splitlines()
    assert not_json.startswith("openclawctl: line 2: it is not JSON: ")
    assert others == [
        "openclawctl: line 3: it is not a JSON object",
        "openclawctl: line 4: a line has either a 'prompt' or 'messages'",
        "openclawctl: line 5: there is no option 'temprature'; did you mean 'temperature'?",
        "openclawctl: line 6: generate: 'top_p' is 7; allowed: 0 to 1",
        "openclawctl: line 7: 'stream' is an option of the whole batch, not of a line",
        "openclawctl: line 8: 'messages' must be a list of maps",
        "openclawctl: error: 7 of 8 lines are bad; nothing was sent",
    ]
    assert asked(running) == []


def test_a_half_line_of_a_batch_that_died_is_asked_again(daemon, ctl, files):
    running = daemon()
    path, out = files(*LINES)
    ctl("generate", "--batch", path, "--out", out, "--concurrency", "1")
    with open(out, "r+b") as file:
        file.truncate(file.seek(0, 2) - 20)
    assert ctl("generate", "--batch", path, "--out", out).status == 0
    assert set(answers_in(out)) == {1, 2, 3}
    assert len(asked(running)) == 4


def test_other_requests_than_those_that_were_answered(daemon, ctl, files):
    running = daemon()
    path, out = files(*LINES)
    ctl("generate", "--batch", path, "--out", out)
    answer = ctl("generate", "--batch", path, "--out", out, "--seed", "1")
    assert answer.status == 1
    assert "has an answer to another line" in answer.err
    assert "give another file with --out" in answer.err
    answer = ctl("generate", "--batch", path, "--out", path)
    assert answer.status == 1
    assert "in.jsonl:1: this is no answer of a batch" in answer.err
    assert len(asked(running)) == 3


@pytest.mark.parametrize("content", ["a note", "a note\n", "\0\0", '{"line": 1}\n', "[]"])
def test_a_file_that_is_not_ours_is_left_alone(daemon, ctl, files, tmp_path, content):
    running = daemon()
    path, _ = files(LINES[0])
    note = tmp_path / "note"
    note.write_text(content)
    answer = ctl("generate", "--batch", path, "--out", str(note))
    assert answer.status == 1
    assert "note:1: this is no answer of a batch" in answer.err
    assert note.read_text() == content
    assert asked(running) == []


def test_requests_from_a_pipe(daemon, ctl, files):
    running = daemon()
    path, out = files(LINES[0], "", *LINES[1:])
    content = Path(path).read_text()
    answer = ctl("generate", "--batch", "-", "--out", out, stdin=content)
    assert (answer.status, answer.err) == (0, "")
    assert answer.out.startswith("3 of 3 answered in ")
    assert set(answers_in(out)) == {1, 3, 4}
    assert {request.params["session"] for request in asked(running)} == {"batch stdin"}
    for requests in ("/dev/stdin", "<(cat)"):
        done = in_shell(f"generate --batch {requests} --out {out}", piped=content)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("0 of 3 answered in ")
        assert "; 3 had an answer before\n" in done.stdout
    assert len(asked(running)) == 3


def in_shell(line, *, piped="", before=""):
    """bash runs the arguments in `line`, and their redirections."""
    command = ["bash", "-c", f'{before} "$@" {line}', "bash", *PROGRAM]
    return subprocess.run(
        command, input=piped, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )


def test_a_file_called_like_standard_input(daemon, ctl, files, tmp_path, monkeypatch):
    daemon()
    path, out = files(LINES[0])
    Path(path).rename(tmp_path / "-")
    monkeypatch.chdir(tmp_path)
    assert ctl("generate", "--batch", "./-", "--out", out).status == 0
    assert set(answers_in(out)) == {1}


@pytest.mark.parametrize("out", ["-", "/dev/full", "/dev/null", ".", "fifo"])
def test_answers_go_to_a_file_only(daemon, ctl, files, tmp_path, monkeypatch, out):
    running = daemon()
    path, _ = files(LINES[0])
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    answer = ctl("generate", "--batch", path, "--out", out)
    assert (answer.status, answer.out) == (2, "")
    assert out in answer.err
    assert "so name a file for them, old or new\n" in answer.err
    assert not Path("-").exists()
    assert asked(running) == []
    if out != "-":  # it may become so after it was looked at
        with pytest.raises((click.UsageError, OpenclawError)), batch_files.Answers(Path(out)):
            pass


def test_answers_do_not_go_where_the_summary_does(daemon, files):
    running = daemon()
    path, out = files(LINES[0])
    done = in_shell(f"generate --batch {path} --out {out} >>{out}")
    assert done.returncode == 2
    assert "out.jsonl is where standard output or error goes" in done.stderr
    assert asked(running) == []


def test_lines_that_are_gone_when_they_would_be_asked(peer, ctl, files):
    """They are beyond what was read ahead."""

    def handler(connection, request):
        os.truncate(path, len(first) + 1)
        connection.complete(request, "!")

    peer(handler=handler)
    first = json.dumps(LINES[0])
    path, out = files(first, " " * 100_000 + json.dumps(LINES[1]))
    answer = ctl("generate", "--batch", path, "--out", out, "--concurrency", "1")
    assert answer.status == 1
    assert "error: 1 of 2 lines were changed or taken away meanwhile, and not asked" in answer.err
    assert "1 of 2 answered" in answer.out
    assert "; 1 were not asked\n" in answer.out


def test_requests_without_an_end(daemon, ctl, files, monkeypatch):
    running = daemon()
    path, out = files(LINES[0], "[" * 100_000)
    answer = ctl("generate", "--batch", path, "--out", out)
    assert answer.status == 2
    assert "line 2: its lists and maps are nested too deeply\n" in answer.err
    answer = ctl("generate", "--batch", "/dev/zero", "--out", out)
    assert answer.status == 2
    assert "line 1: it has more than 64.0 MiB; what follows was not read\n" in answer.err
    monkeypatch.setattr(batch_files, "MAX_PIPED_BYTES", 100)
    answer = ctl("generate", "--batch", "-", "--out", out, stdin='{"prompt": "x"}\n' * 7)
    assert answer.status == 1
    assert "more than 100 B of requests come through a pipe\n" in answer.err
    assert "write them to a file and name that with --batch" in answer.err
    assert asked(running) == []


def test_requests_that_cannot_be_read_or_kept(daemon, ctl, files, tmp_path, monkeypatch):
    daemon()
    _, out = files()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        answer = ctl("generate", "--batch", str(tmp_path / "s"), "--out", out)
    assert answer.status == 1
    assert f"cannot read {tmp_path}/s: No such device or address" in answer.err
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    answer = ctl("generate", "--batch", "-", "--out", out)
    assert answer.status == 1
    assert "cannot keep the requests in a temporary file: No such file or dir" in answer.err
    content = "\n" * 100_000
    done = in_shell(f"generate --batch - --out {out}", piped=content, before="ulimit -f 8;")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "openclawctl: error: cannot keep the requests in a temporary file: File too large\nhint: "
    )


def test_two_batches_into_one_file(daemon, ctl, files):
    daemon()
    path, out = files(LINES[0])
    with batch_files.Answers(Path(out)):
        answer = ctl("generate", "--batch", path, "--out", out)
    assert answer.status == 1
    assert "another batch writes" in answer.err


def test_progress_on_a_terminal(peer, files):
    """A request that takes longer than waits that are not worth a line."""

    def handler(connection, request):
        if request.op == "usage":
            connection.done(request, rows=[], currency=None)
            return
        connection.sock.settimeout(0.4)
        with pytest.raises(TimeoutError):
            connection.sock.recv(1)
        connection.sock.settimeout(TIMEOUT_S)
        connection.complete(request, "!")

    peer(handler=handler)
    path, out = files(*LINES)
    with Terminal("generate", "--batch", path, "--out", out, "--concurrency", "1") as terminal:
        terminal.read_until("1 of 3, 0 failed")
        terminal.read_until("3 of 3 answered in")


def test_a_system_message_makes_chats_of_prompts(daemon, ctl, files):
    running = daemon()
    path, out = files(LINES[0])
    ctl("generate", "--batch", path, "--out", out, "--system", "S")
    (request,) = asked(running)
    assert [message["content"] for message in request.params["messages"]] == ["S", "one"]


@pytest.mark.parametrize(
    "arguments",
    [("--batch", "{in}"), ("--batch", "{in}", "--out", "{out}", "prompt"), ("--out", "{out}", "x")],
)
def test_options_that_do_not_go_together(daemon, ctl, files, arguments):
    daemon()
    path, out = files(LINES[0])
    given = [text.format(**{"in": path, "out": out}) for text in arguments]
    assert ctl("generate", *given).status == 2


def test_ctrl_c_keeps_what_there_is(peer, files):
    """The second line is running by then."""

    def handler(connection, request):
        if request.op == "usage":
            connection.done(request, rows=[], currency=None)
        elif request.params.get("prompt") == "one":
            connection.complete(request, "!")
        else:
            process.send_signal(signal.SIGINT)
            cancelled.append(connection.cancel().id == request.id)

    cancelled = []
    peer(handler=handler)
    path, out = files(*LINES)
    command = [*PROGRAM, "generate", "--batch", path, "--out", out, "--concurrency", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        text, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert text.startswith("1 of 3 answered in ")
    assert set(answers_in(out)) == {1}


def test_a_dry_run_of_a_batch(daemon, ctl, files):
    running = daemon()
    path, _ = files(*LINES)
    answer = ctl("generate", "--batch", path, "--dry-run")
    assert (answer.status, answer.out.splitlines()) == (
        0,
        [
            "3 of 3 would be asked",
            "15 prompt tokens, at most 30 completion tokens, at most 0.0045 EUR",
        ],
    )
    assert {request.params["dry_run"] for request in asked(running)} == {True}


FORECAST = {
    "model": "smollm2",
    "prompt_tokens": 5,
    "completion_tokens": 256,
    "context": {"dropped": 0},
    "cost": {"currency": "EUR", "prompt": 5, "total": 1029, "per_second": 0},
    "limits": [{"name": "short", "per": "principal", "max_prompt_tokens": 100, "max_queue_s": 1.5}],
    "rate_limits": [
        {"rule": "flow", "unit": "tokens", "used": 20, "limit": 100, "window_s": 60}
        | {"retry_after_s": 1.5}
    ],
    "budgets": [
        {"name": "daily", "bucket": "user:alice", "resets_at": None}
        | {"tokens": {"left": 1000, "left_after": 739}}
    ],
    "waits_for_budget": False,
    "queue": {"running": 1, "waiting": 2, "eta_s": 3.0},
}


def test_a_dry_run_of_one_request(peer, ctl):
    running = peer(handler=lambda connection, request: connection.done(request, **FORECAST))
    answer = ctl("generate", "--dry-run", "Hello", "--max-tokens", "256")
    assert [" ".join(line.split()) for line in answer.out.splitlines()] == [
        "model smollm2",
        "prompt 5 tokens",
        "answer at most 256 tokens",
        "cost at most 0.001029 EUR (prompt: 0.000005)",
        "limits short (max_prompt_tokens 100, max_queue_s 1.5)",
        "now 1 running, 2 waiting, it would wait about 3.0s",
        "",
        "LIMIT UNIT LEFT AFTER RESETS",
        "flow tokens 80 75 within 1m; room in 1.5s",
        "daily of user:alice tokens 1000 739 never",
    ]
    assert json.loads(ctl("generate", "--dry-run", "--json", "x").out) == FORECAST
    ctl("generate", "--dry-run", "--system", "", "x")
    assert [request.op for request in running.requests] == ["generate", "generate", "chat"]
    assert {request.params["dry_run"] for request in running.requests} == {True}
