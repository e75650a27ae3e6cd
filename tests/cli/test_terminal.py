"""Signals and terminals: Ctrl-C, a reader that leaves, progress lines, the interactive chat."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time

import pytest

from openclawctl import NotFound, PromptTooLong
from openclawctl.wire.messages import Cancel, Delta

PROGRAM = [sys.executable, "-m", "openclawctl"]
TIMEOUT_S = 30


def start(*args, **streams):
    return subprocess.Popen(
        [*PROGRAM, *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **streams,
    )


def stop_on_cancel(connection, request):
    connection.delta(request, "Once ")
    connection.cancel()
    connection.delta(request, "upon")
    connection.complete(request, finish_reason="cancelled")


def test_ctrl_c_while_it_is_imported_ends_without_a_traceback(tmp_path):
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run(
        [sys.executable, "-m", "openclawctl", "status"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("extra", [[], ["--stats"]])
def test_ctrl_c_cancels_on_the_daemon_and_prints_what_there_is(peer, extra):
    daemon = peer(handler=stop_on_cancel)
    process = start("generate", "x", *extra)
    assert os.read(process.stdout.fileno(), 5) == b"Once "
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert out == b"upon\n"
    assert err.startswith(b"interrupted: 5 prompt tokens (2 cached), 3 completion tokens (canc")
    assert any(isinstance(message, Cancel) for message in daemon.received)


def test_second_ctrl_c_leaves_at_once(peer):
    was_cancelled = threading.Event()

    def handler(connection, request):
        connection.delta(request, "Once ")
        connection.cancel()
        was_cancelled.set()
        connection.next()  # never answers the cancel

    peer(handler=handler)
    process = start("generate", "x")
    assert os.read(process.stdout.fileno(), 5) == b"Once "
    process.send_signal(signal.SIGINT)
    assert was_cancelled.wait(TIMEOUT_S)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130


def test_reader_that_leaves_cancels_quietly(peer):
    is_left = threading.Event()

    def handler(connection, request):
        connection.delta(request, "Once ")
        assert is_left.wait(TIMEOUT_S)
        # One delta makes it write, and find that nobody reads; its cancel waits behind that.
        connection.delta(request, "more ")
        connection.cancel()

    daemon = peer(handler=handler)
    process = start("generate", "x")
    assert os.read(process.stdout.fileno(), 5) == b"Once "
    process.stdout.close()
    is_left.set()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(TIMEOUT_S) == 141
    daemon.join()
    assert any(isinstance(message, Cancel) for message in daemon.received)


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, *args, env=None):
        self.primary, secondary = pty.openpty()
        self.process = subprocess.Popen(
            [*PROGRAM, *args],
            stdin=secondary,
            stdout=secondary,
            stderr=secondary,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100", **(env or {})},
        )
        os.close(secondary)
        self.seen = ""

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.kill()
        self.process.wait()
        os.close(self.primary)

    def read_until(self, text):
        """What came up to and including `text`."""
        deadline = time.monotonic() + TIMEOUT_S
        while text not in self.seen:
            readable, _, _ = select.select([self.primary], [], [], deadline - time.monotonic())
            assert readable, f"no {text!r} in {self.seen!r}"
            self.seen += os.read(self.primary, 65536).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def interrupt_until(self, text):
        """Ctrl-C until `text` comes: readline overlooks one that comes as it starts to wait."""
        while text not in self.seen:
            self.process.send_signal(signal.SIGINT)
            readable, _, _ = select.select([self.primary], [], [], 1)
            if readable:
                self.seen += os.read(self.primary, 65536).decode(errors="replace")
        self.read_until(text)

    def read_to_end(self):
        text, self.seen = self.seen, ""
        while True:
            try:
                data = os.read(self.primary, 65536)
            except OSError:  # EIO: the program has closed the terminal
                return text
            if not data:
                return text
            text += data.decode(errors="replace")

    def answer(self, typed, wanted):
        """Type at the next prompt, and wait for what comes of it."""
        self.read_until("> ")
        self.type(typed)
        self.read_until(wanted)

    def type(self, text):
        os.write(self.primary, text.encode())


def test_escape_sequences_of_a_model_do_not_reach_the_terminal(peer):
    attack = "a\x1b]0;owned\x07b\x9b2Jc\rd"
    peer(handler=lambda connection, request: connection.complete(request, attack))
    with Terminal("generate", "x") as terminal:
        text = terminal.read_to_end()
    assert "a\ufffd]0;owned\ufffdb\ufffd2Jcd" in text
    assert "\x1b" not in text


ERROR, HINT = "\x1b[31m\x1b[1merror:\x1b[0m", "\x1b[36mhint:\x1b[0m"


def what_is_said_on_a_terminal(*args, **env):
    with Terminal("--socket", "/none", *args, env=env) as terminal:
        return terminal.read_to_end()


def test_errors_are_in_colour_on_a_terminal():
    text = what_is_said_on_a_terminal("ping", NO_COLOR="")
    assert text.startswith(f"openclawctl: {ERROR} there is no socket at /none")
    assert f"\r\n{HINT} start it with" in text


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_errors_have_no_colour_where_none_is_wanted(env):
    text = what_is_said_on_a_terminal("ping", **env)
    assert text.startswith("openclawctl: error: there is no socket at /none")
    assert "\r\nhint: start it with" in text
    assert "\x1b" not in text


def test_errors_in_json_have_no_colour():
    text = what_is_said_on_a_terminal("ping", "--json")
    assert json.loads(text)["error"]["code"] == "unreachable"
    assert "\x1b" not in text


def test_errors_have_no_colour_in_a_pipe():
    _, said = start("--socket", "/none", "ping", env=os.environ | {"TERM": "xterm"}).communicate()
    assert said.startswith(b"openclawctl: error: there is no socket at /none")
    assert b"\x1b" not in said


def test_escape_sequences_in_a_problem_do_not_reach_the_terminal(peer):
    problem = NotFound("no \x1b]0;owned\x07 model", hint="try \x1b[2J\rthis")
    peer(handler=lambda connection, request: connection.error(request, problem))
    with Terminal("unload", "m") as terminal:
        text = terminal.read_to_end()
    assert text == (
        f"openclawctl: {ERROR} no \ufffd]0;owned\ufffd model\r\n{HINT} try \ufffd[2Jthis\r\n"
    )


def test_pipes_get_the_text_as_it_is(peer):
    attack = "a\x1b[2Jb\r\n"
    peer(handler=lambda connection, request: connection.complete(request, attack))
    process = start("generate", "x")
    out, _ = process.communicate(timeout=TIMEOUT_S)
    assert out == attack.encode()


def think_first(connection, request):
    for text in ("Well, ", "let me see."):
        connection.send(Delta(request.id, reasoning=text))
    connection.complete(request, "Yes.")


def test_reasoning_is_shown_on_a_terminal_and_is_no_part_of_the_text(peer):
    peer(handler=think_first)
    with Terminal("generate", "--system", "", "x") as terminal:
        text = terminal.read_to_end()
    assert text == "Well, let me see.\r\n\r\nYes.\r\n"
    process = start("generate", "--system", "", "x")
    assert process.communicate(timeout=TIMEOUT_S) == (b"Yes.\n", b"")


def test_long_load_shows_progress_on_a_terminal_only(peer):
    def handler(connection, request):
        start_s = time.monotonic()
        while time.monotonic() - start_s < 0.5:  # longer than waits that are not worth a line
            connection.event(request, "loading", phase="weights", fraction=0.25)
            connection.sock.settimeout(0.02)
            with pytest.raises(TimeoutError):
                connection.sock.recv(1)
        connection.sock.settimeout(TIMEOUT_S)
        connection.done(request, model="m", state="ready")

    peer(handler=handler)
    with Terminal("load", "m") as terminal:
        text = terminal.read_to_end()
    assert "loading: weights" in text
    assert "25%" in text
    assert "m is ready" in text
    process = start("load", "m")
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert out.startswith(b"m is ready")
    assert err == b""


def answer_with_the_history(connection, request):
    if "slow" in request.params["messages"][-1]["content"]:
        return stop_on_cancel(connection, request)
    turns = request.params["messages"]
    model = request.params.get("model", "default")
    connection.complete(request, f"[{model}] " + "|".join(turn["content"] for turn in turns))
    return None


def test_chat_on_a_terminal(peer):
    peer(handler=answer_with_the_history)
    with Terminal("chat", "--system", "S") as terminal:
        terminal.answer("one\n", "[default] S|one")
        terminal.answer("two \\\nlines\n", "S|one|[default] S|one|two \r\nlines")
        terminal.answer("/model m\n", "model: m")
        terminal.answer("/clear\n", "(forgotten)")
        terminal.answer('"""\na\nb"""\n', "[m] S|a\r\nb")
        terminal.answer("//slash\n", "|/slash")
        terminal.answer("/system T\n", "system message: T")
        terminal.answer("/stats\n", "3 completion tokens (stop)")
        terminal.answer("/halp\n", "unknown command /halp; did you mean 'help'?")
        terminal.answer("/help\n", "Ctrl-C stops an answer.")
        terminal.read_until("> ")
        terminal.type("\x04")
        assert terminal.process.wait(TIMEOUT_S) == 0


def test_ctrl_c_in_a_chat_ends_the_answer_only(peer):
    peer(handler=answer_with_the_history)
    with Terminal("chat") as terminal:
        terminal.answer("slow\n", "Once ")
        terminal.process.send_signal(signal.SIGINT)
        terminal.read_until("stopped: 5 prompt tokens")
        terminal.read_until("> ")
        terminal.interrupt_until("(Ctrl-D or /exit leaves)")
        terminal.answer("more\n", "slow||more")
        terminal.read_until("> ")
        terminal.type("/exit\n")
        assert terminal.process.wait(TIMEOUT_S) == 0


def test_error_in_a_chat_leaves_the_conversation_usable(peer):
    def handler(connection, request):
        if request.params["messages"][-1]["content"] == "huge":
            connection.error(request, PromptTooLong("too long: 9 > 8", hint="/clear"))
        else:
            answer_with_the_history(connection, request)

    peer(handler=handler)
    with Terminal("chat") as terminal:
        terminal.answer("huge\n", f"{ERROR} too long: 9 > 8")
        terminal.answer("small\n", "[default] small")
        terminal.read_until("> ")
        terminal.type("\x04")
        assert terminal.process.wait(TIMEOUT_S) == 0
