"""Completion: the names that a daemon knows, none from one that is slow or gone, and bash."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading

import pytest
from cli.conftest import PROGRAM
from client import peer as peer_module

from openclawctl import calls
from openclawctl.cli import names
from openclawctl.cli.completion import SHELLS, script
from openclawctl.wire.errors import Denied
from openclawctl.wire.messages import Welcome

TIMEOUT_S = 30
MODELS = [
    {"name": "smollm2", "aliases": ["chat", "small:x"], "adapters": ["pirate"]},
    {"name": "small-1", "aliases": [], "adapters": ["poet"]},
]
REQUEST = {"request_id": "01a2-x", "state": "running", "model": "m", "principal": "user:alice"}


def answer(connection, request):
    match request.op:
        case "models":
            connection.done(request, models=MODELS)
        case "keys.list":
            connection.done(request, keys=[{"name": "nightly"}, {"name": "ci"}])
        case "usage":
            connection.done(request, rows=[{"key": "user:alice"}, {"key": "user:bob"}])
        case "status":
            connection.done(request, requests={"open": [REQUEST]})
        case _:
            connection.error(request, Denied("not you"))


@pytest.fixture
def complete():
    """What is offered for these words, of which the last is not finished."""

    def complete(*words, shell="bash"):
        environ = {
            "_OPENCLAWCTL_COMPLETE": f"{shell}_complete",
            "COMP_WORDS": "\n".join(["openclawctl", *words]),
            "COMP_CWORD": str(len(words)),
        }
        done = subprocess.run(
            PROGRAM,
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.stderr == ""
        return [line.partition(",")[2] for line in done.stdout.splitlines() if line]

    return complete


def test_names_come_from_the_daemon(peer, complete):
    running = peer(handler=answer)
    assert complete("load", "sm") == ["small-1", "small:x", "smollm2"]
    assert complete("generate", "--model", "c") == ["chat"]
    assert complete("generate", "--adapter", "p") == ["pirate", "poet"]
    assert complete("generate", "--model", "chat", "--adapter", "") == ["pirate"]
    assert complete("keys", "revoke", "") == ["ci", "nightly"]
    assert complete("audit", "--principal", "user:a") == ["user:alice"]
    assert complete("requests", "cancel", "") == ["01a2-x"]
    assert complete("logs", "--request", "01") == ["01a2-x"]
    assert {request.op for request in running.requests} == {
        "models",
        "keys.list",
        "usage",
        "status",
    }


def test_commands_and_options_need_no_daemon(complete):
    assert complete("req") == ["requests"]
    assert complete("drain", "--w") == ["--wait"]
    assert complete("completion", "b") == ["bash"]
    assert complete("no-such-command", "x") == []


def test_the_daemon_is_named_on_the_command_line(peer, complete, monkeypatch):
    running = peer(handler=answer)
    monkeypatch.delenv("OPENCLAWD_SOCKET")
    assert complete("--socket", str(running.path), "unload", "smo") == ["smollm2"]


def test_a_daemon_that_refuses_or_is_gone_is_not_spoken_of(peer, complete, monkeypatch):
    peer(handler=lambda connection, request: connection.error(request, Denied("not you")))
    assert complete("load", "") == []
    monkeypatch.setenv("OPENCLAWD_SOCKET", "/nonexistent/s")
    assert complete("load", "") == []
    monkeypatch.setenv("OPENCLAWD_API_KEY_FILE", "/nonexistent/k")
    assert complete("load", "") == []


@pytest.mark.parametrize("greets", [False, True])
def test_a_daemon_that_says_nothing_is_not_waited_for(peer, complete, greets):
    """Any other command waits for a minute for a greeting and half of one for an answer: whoever
    hangs up before the peer loses patience does so because of the limit, which may be over before
    there is a connection."""
    assert names.LIMIT_S <= 0.2
    assert min(calls.GREETING_TIMEOUT_S, calls.QUICK_TIMEOUT_S) > peer_module.TIMEOUT_S
    has_hung_up = threading.Event()

    def say_nothing(connection):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if greets and connection.next() is not None:
                connection.send(Welcome(1, "openclawd 9.9", "user:test"))
            while connection.sock.recv(65536):
                pass
        has_hung_up.set()

    running = peer(say_nothing)
    assert complete("load", "sm") == []
    assert running.num_connections == 0 or has_hung_up.wait(TIMEOUT_S)


def test_instances_have_sockets(monkeypatch, tmp_path):
    monkeypatch.setattr(names, "_SOCKETS", tmp_path)
    for name in ("openclawd.sock", "gpu.sock", "gpu-2.sock", "fetch"):
        (tmp_path / name).touch()
    assert [each.value for each in names.instances(None, None, "g")] == ["gpu", "gpu-2"]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_scripts(ctl, shell):
    printed = ctl("completion", shell)
    assert (printed.status, printed.err) == (0, "")
    assert printed.out == script(shell).rstrip() + "\n"
    if shutil.which(shell):
        read_only = "--no-execute" if shell == "fish" else "-n"
        subprocess.run([shell, read_only], input=printed.out, text=True, check=True)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["load", "smo"], ["smollm2"]),
        (["generate", "--model", "=", "smo"], ["smollm2"]),
        (["load", "small", ":", ""], ["x"]),
        (["generate", "--model", "=", "small", ":", "x"], ["x"]),
        (["audit", "--principal", "user", ":"], ["alice", "bob"]),
        (["audit", "--principal", "user", ":", "b"], ["bob"]),
        (["reque"], ["requests"]),
        (["load", "none-such"], []),
    ],
)
def test_in_bash(peer, words, offered):
    """As bash splits them: `:` and `=` are words."""
    peer(handler=answer)
    lines = [
        script("bash"),
        "COMP_WORDBREAKS=$' \\t\\n\"\\'><=;|&(:'",
        'COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))',
        "_openclawctl_completion openclawctl",
        'printf "%s\\n" "${COMPREPLY[@]}"',
    ]
    done = subprocess.run(
        ["bash", "--norc", "-c", "\n".join(lines), "bash", "openclawctl", *words],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == offered
