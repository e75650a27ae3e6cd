"""A worker's life: how it starts, how it fails to load, how it ends."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
from models.gguf_writer import copy_with_keys
from worker.driver import TIMEOUT_S, running_worker

from openclawd.worker.messages import (
    EXIT_LOAD_FAILED,
    EXIT_LOAD_FAILED_FOR_NOW,
    EXIT_STOPPED,
    Load,
    Loaded,
    LoadFailed,
    Loading,
    Start,
    Step,
    Stop,
)

if TYPE_CHECKING:
    from pathlib import Path

EXIT_BUG = 1


def test_it_says_how_the_load_goes_and_what_the_model_is(model_path: Path, folder: Path) -> None:
    with running_worker(folder) as worker:
        worker.send(Load("m", str(model_path), 2, 256, 512, 128, threads=1))
        news = []
        while isinstance(message := worker.receive(), Loading):
            news.append((message.phase, message.fraction))
        assert isinstance(message, Loaded)
        assert ("read", 1.0) in news
        assert news[-1] == ("warm-up", 1.0)
        assert news == sorted(news)
        info = message.info
        assert info["chat_template"] is True
        assert info["context"] == 256
        assert info["parallel"] == 2
        assert info["load_s"] > 0
        assert info["warnings"] == []
        worker.send(Stop())
        assert worker.wait_exit() == EXIT_STOPPED
        assert worker.log == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "does not exist"), (b"", "is empty"), (b"hello", "not a GGUF file")],
)
def test_a_file_that_cannot_be_loaded(folder: Path, content: bytes | None, said: str) -> None:
    path = folder / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with running_worker(folder) as worker:
        failed = worker.load(path)
        assert isinstance(failed, LoadFailed)
        assert said in failed.message
        assert str(path) in failed.message
        assert failed.hint
        assert failed.permanent
        assert worker.wait_exit() == EXIT_LOAD_FAILED


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "does not compile: RecursionError"),
        ("{% " + "x" * 20_000_000 + " %}", "does not compile: TemplateSyntaxError"),
        ("{{ 10 ** (10**9) }}", "fails on these messages: OverflowError"),
        ("{{ raise_exception('x' * 16777150) }}", "refuses these messages: xxx"),
    ],
    ids=["deep", "long", "number", "refusal"],
)
def test_a_hostile_template_leaves_generate(
    model_path: Path, folder: Path, template: str, said: str
) -> None:
    """It can be loaded, and what it says fits a frame, and a line of the log."""
    path = folder / "model.gguf"
    copy_with_keys(model_path, path, {"tokenizer.chat_template": template})
    with running_worker(folder) as worker:
        loaded = worker.load(path)
        assert isinstance(loaded, Loaded), worker.log[-2000:]
        error = worker.refusal("chat", messages=[{"role": "user", "content": "Hello"}])
        assert said in error["message"]
        assert len(error["message"]) < 700
        assert all(len(warning) < 700 for warning in loaded.info["warnings"])
        assert worker.run("generate", prompt="Hello", max_tokens=2).end.completion_tokens == 2


def test_want_of_memory_may_pass(model_path: Path, folder: Path) -> None:
    with running_worker(folder) as worker:
        limit = 4 * 2**30
        resource.prlimit(worker.process.pid, resource.RLIMIT_AS, (limit, limit))
        failed = worker.load(model_path, kv_tokens=1_000_000)
        assert isinstance(failed, LoadFailed)
        assert "not enough memory" in failed.message
        assert "1000000 KV tokens" in failed.message
        assert not failed.permanent
        assert worker.wait_exit() == EXIT_LOAD_FAILED_FOR_NOW
        assert "<3>llama.cpp: " in worker.log


def test_stop_while_loading(model_path: Path, folder: Path) -> None:
    with running_worker(folder) as worker:
        worker.send(Load("m", str(model_path), 2, 256, 512, 128), Stop())
        assert worker.wait_exit() == EXIT_STOPPED


def test_it_ends_when_the_pipe_closes(model_path: Path, folder: Path) -> None:
    with running_worker(folder) as worker:
        worker.load(model_path)
        worker.connection.close()
        assert worker.wait_exit() == EXIT_STOPPED


def test_it_ends_when_the_pipe_closes_while_it_computes(model_path: Path, folder: Path) -> None:
    with running_worker(folder) as worker:
        worker.load(model_path)
        rid = worker.prepare("generate", prompt="Once upon a time")
        worker.send(Start(rid, 500, {"seed": 1}))
        worker.receive_until(Step)
        worker.connection.close()
        assert worker.wait_exit() == EXIT_STOPPED


def test_it_ends_when_nothing_was_ever_said(folder: Path) -> None:
    with running_worker(folder) as worker:
        worker.connection.close()
        assert worker.wait_exit() == EXIT_STOPPED


def test_signals_of_a_terminal_do_not_end_it(model_path: Path, folder: Path) -> None:
    with running_worker(folder) as worker:
        worker.load(model_path)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            worker.process.send_signal(number)
        assert worker.run("generate", prompt="still here", max_tokens=2).end.completion_tokens == 2


def test_a_first_message_that_is_not_load_is_a_bug(folder: Path) -> None:
    with running_worker(folder) as worker:
        worker.send(Stop())
        assert worker.wait_exit() == EXIT_BUG
        assert "the first message is 'stop'" in worker.log
        assert all(line.startswith("<3>") for line in worker.log.splitlines())


def test_a_second_load_is_a_bug(model_path: Path, folder: Path) -> None:
    with running_worker(folder) as worker:
        worker.load(model_path)
        worker.send(Load("m", str(model_path), 2, 256, 512, 128))
        assert worker.wait_exit() == EXIT_BUG


PARENT = """
import socket, subprocess, sys
fd = int(sys.argv[1])
child = subprocess.Popen([sys.executable, "-m", "openclawd.worker", "--fd", str(fd)], pass_fds=[fd])
print(child.pid, flush=True)
child.wait()
"""


def test_it_dies_with_its_parent_even_if_the_pipe_stays_open(model_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = theirs.fileno()
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(fd)], pass_fds=[fd], stdout=subprocess.PIPE
        )
        with parent:
            assert parent.stdout is not None
            worker = psutil.Process(int(parent.stdout.readline()))
            handle = os.pidfd_open(worker.pid)
            try:
                from openclawctl.wire.framing import encode_frame
                from openclawd.worker.messages import encode

                load = Load("m", str(model_path), 1, 256, 256, 128, threads=1)
                ours.sendall(encode_frame(encode(load)))
                assert ours.recv(1)  # it runs, and has arranged everything
                parent.kill()
                _wait_readable(handle)
            finally:
                os.close(handle)


def _wait_readable(descriptor: int) -> None:
    """A pidfd becomes readable when its process has ended."""
    import select

    ready, _, _ = select.select([descriptor], [], [], TIMEOUT_S)
    assert ready
