"""`openclawctl logs`: the journalctl command it makes, that journalctl takes it, and no journal."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys

import pytest
from harness import running_daemon

from openclawctl.cli import logs


@pytest.fixture
def made(ctl, monkeypatch):
    """The command for a socket, without what every one begins with."""

    def make(*arguments, socket="/run/openclawd/openclawd.sock"):
        monkeypatch.setenv("OPENCLAWD_SOCKET", socket)
        answer = ctl("logs", "--print", *arguments)
        assert (answer.status, answer.err) == (0, "")
        return shlex.split(answer.out)

    return make


def test_the_unit_follows_from_the_socket(made):
    assert made() == ["journalctl", "--unit=openclawd.service"]
    assert made(socket="/run/openclawd/gpu.sock") == ["journalctl", "--unit=openclawd@gpu.service"]
    assert made("--instance", "a", "--instance", "b") == [
        "journalctl",
        "--unit=openclawd@a.service",
        "--unit=openclawd@b.service",
    ]
    assert made("--all") == ["journalctl", "--unit=openclawd*.service"]


EVERYTHING = [
    "--since=1h30m", "--until=yesterday", "--lines=5", "--level=warning", "--request=01a2",
    "--model=a model", "--explain", "--json", "--", "--reverse",
]  # fmt: skip


def test_every_filter(made):
    assert made(*EVERYTHING) == [
        "journalctl", "--unit=openclawd.service", "--since=-5400s", "--until=yesterday",
        "--lines=5", "--priority=warning", "--catalog", "--output=json", "--reverse",
        "REQUEST_ID=01a2", "MODEL=a model",
    ]  # fmt: skip
    assert made("-f")[2:] == ["--follow"]
    assert made("--level", "error")[2:] == ["--priority=err"]


@pytest.mark.skipif(shutil.which("journalctl") is None, reason="there is no journalctl")
def test_journalctl_takes_it(made, tmp_path):
    """The real one, on an empty journal."""
    command = [*made(*EVERYTHING), f"--directory={tmp_path}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "unrecognized" not in answer.stderr
    assert "Failed to parse" not in answer.stderr
    assert (answer.returncode, answer.stdout) in ((0, ""), (1, ""))


def test_it_becomes_journalctl(monkeypatch, tmp_path):
    """One that says what it was given, in place of the real one."""
    fake = tmp_path / "journalctl"
    fake.write_text('#!/bin/sh\necho "$@"; exit 7\n')
    fake.chmod(0o755)
    script = (
        "import sys; from pathlib import Path; from openclawctl.cli import logs, run\n"
        "logs._SYSTEMD = Path('/')\n"
        "sys.exit(run(['logs', '--model', 'm']))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PATH": str(tmp_path), "OPENCLAWD_SOCKET": "/run/openclawd/x.sock"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (answer.returncode, answer.stdout) == (7, "--unit=openclawd@x.service MODEL=m\n")


def test_no_journal(ctl, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENCLAWD_SOCKET", "/run/openclawd/openclawd.sock")
    monkeypatch.setattr(logs, "_SYSTEMD", tmp_path / "none")
    answer = ctl("logs")
    assert answer.status == 1
    assert "there is no journal here" in answer.err
    assert "openclawd.log in its state directory" in answer.err


def test_a_daemon_that_was_started_by_hand(ctl, monkeypatch, folder):
    monkeypatch.setenv("OPENCLAWD_SOCKET", str(folder / "s"))
    answer = ctl("logs")
    assert answer.status == 1
    assert f"no daemon listens on {folder / 's'}" in answer.err
    with running_daemon(folder=folder) as daemon:
        daemon.wait_ready()
        answer = ctl("logs")
    assert answer.status == 1
    assert f"this openclawd (pid {daemon.pid}) was started by hand" in answer.err
    assert f"tail -F {folder}/state/openclawd.log" in answer.err
