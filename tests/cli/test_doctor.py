"""`openclawctl doctor` as its caller sees it. The faults that it finds: `tests/doctor/`."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openclawctl import __version__
from openclawctl.cli import diagnosis
from openclawctl.cli.diagnosis import Subject, check_socket, check_unit
from openclawctl.wire.errors import Denied


@pytest.fixture
def started(peer):
    """A daemon that says that it started then, `seconds` after its process, which is this one."""

    def start(seconds=0.0, *, version=__version__):
        born_at = time.time() - diagnosis._age_s(os.getpid())

        def handler(connection, request):
            if request.op == "ping":
                connection.done(request, server=f"openclawd {version}")
            else:
                server = {"pid": os.getpid(), "started_at": born_at + seconds}
                connection.done(request, server=server)

        return Subject(str(peer(handler=handler).path), [])

    return start


def test_a_daemon_that_answers(started):
    subject = started(2.0)
    (found,) = check_socket(subject)
    assert found[:2] == ("socket", "ok")
    assert found.message == f"openclawd {__version__} answers at {subject.socket_path}"


@pytest.mark.parametrize(("seconds", "way"), [(-7200.0, "forward"), (7200.0, "back")])
def test_the_clock_was_set_since_it_started(started, seconds, way):
    _, found = check_socket(started(seconds))
    assert (found.check, found.state) == ("clock", "warning")
    assert found.message == f"the clock was set {way} by 7200 s since the daemon started"
    assert "timedatectl" in found.remedy


def test_a_daemon_of_another_version(started):
    (found,) = check_socket(started(version="99.0.0"))
    assert found.state == "warning"
    assert "restart the daemon" in found.remedy


def test_a_refusal(peer):
    problem = Denied("user:bob has no role", hint="ask the administrator")
    daemon = peer(handler=lambda connection, request: connection.error(request, problem))
    (found,) = check_socket(Subject(str(daemon.path), []))
    assert found[1:] == ("failed", f"{daemon.path}: user:bob has no role", "ask the administrator")


def test_the_folder_of_the_system_is_missing():
    if os.path.exists("/run/openclawd"):
        pytest.skip("openclawd is installed here")
    (found,) = check_socket(Subject("/run/openclawd/openclawd.sock", []))
    assert "systemd-tmpfiles --create openclawd.conf" in found.remedy


UNIT = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "Result": "success",
    "ExecMainStatus": "0",
    "MainPID": "123",
    "NRestarts": "0",
    "StatusText": "smollm2 ready; 0 running, 0 queued, 0 tokens/s",
}
"""As `systemctl show` says it of a service that is well."""


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({}, "ok", "is active: smollm2 ready"),
        ({"NRestarts": "3"}, "warning", "start it again 3 times"),
        ({"ActiveState": "activating", "StatusText": ""}, "warning", "models are loading"),
        ({"ActiveState": "inactive"}, "warning", "is inactive"),
        ({"LoadState": "not-found", "ActiveState": "inactive"}, "warning", "knows no"),
    ],
)
def test_a_unit(changes, state, words):
    found = check_unit("openclawd", UNIT | changes)
    assert found.state == state
    assert words in found.message
    assert bool(found.remedy) == (state != "ok")


@pytest.mark.parametrize(
    ("result", "status", "why"),
    [
        ("exit-code", "78", "its configuration is wrong"),
        ("exit-code", "1", "exit status 1"),
        ("watchdog", "6", "watchdog"),
        ("oom-kill", "9", "memory"),
        ("start-limit-hit", "1", "too often"),
        ("signal", "11", "a signal"),
        ("timeout", "0", "not ready in time"),
    ],
)
def test_a_dead_unit(result, status, why):
    unit = UNIT | {"ActiveState": "failed", "Result": result, "ExecMainStatus": status}
    found = check_unit("openclawd@two", unit)
    assert found.state == "failed"
    assert found.message.startswith("openclawd@two.service is dead: ")
    assert why in found.message
    assert "journalctl -u openclawd@two -n 50" in found.remedy
    assert "systemctl reset-failed openclawd@two" in found.remedy
    its_file = "`openclawctl config check /etc/openclawd-two/openclawd.yaml`"
    assert (its_file in found.remedy) == (status == "78")


def test_which_unit_a_socket_belongs_to():
    units = {path: Subject(path, []).unit for path in ("/tmp/s", "/run/openclawd/two.sock")}
    assert units == {"/tmp/s": "", "/run/openclawd/two.sock": "openclawd@two"}
    assert Subject("/run/openclawd/openclawd.sock", []).unit == "openclawd"
    assert diagnosis._directories("openclawd@two")["STATE_DIRECTORY"] == "/var/lib/openclawd-two"


@pytest.fixture
def client_only(tmp_path):
    """`openclawctl` in a Python that has no daemon, with nothing on $PATH but what is in a folder:
    returns the folder and a function that runs it."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in ("openclawctl", "click", "msgpack", "platformdirs"):
        (packages / name).symlink_to(Path(importlib.util.find_spec(name).origin).parent)
    programs = tmp_path / "programs"
    programs.mkdir()
    environ = {"PATH": str(programs), "PYTHONPATH": str(packages), "HOME": str(tmp_path)}

    def run(*args):
        command = [sys.executable, "-P", "-S", "-m", "openclawctl", *args]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)

    return programs, run


def finding(answer, check):
    (found,) = [f for f in json.loads(answer.stdout)["findings"] if f["check"] == check]
    return found


def test_only_the_client_is_installed(client_only):
    _, run = client_only
    found = finding(run("--socket", "/tmp/none", "doctor", "--json"), "installation")
    assert found["state"] == "warning"
    assert found["message"].startswith("openclawd is not installed here, only its client")
    assert "openclawd[daemon]" in found["remedy"]


def test_a_daemon_that_knows_no_doctor(client_only):
    """An older one of another installation."""
    programs, run = client_only
    program = programs / "openclawd"
    program.write_text("#!/bin/sh\necho 'openclawd: error: unrecognized: --doctor' >&2\nexit 2\n")
    program.chmod(0o755)
    found = finding(run("--socket", "/tmp/none", "doctor", "--json"), "installation")
    assert found["state"] == "failed"
    assert found["message"].endswith("failed: openclawd: error: unrecognized: --doctor")
    assert "openclawctl version" in found["remedy"]


def test_with_a_real_daemon(daemon, ctl, monkeypatch):
    """What is examined is what it runs with."""
    monkeypatch.setenv("OPENCLAWD_SOCKET", str(daemon.socket))
    answer = ctl("doctor", "--json")
    report = json.loads(answer.out)
    states = {found["check"]: found["state"] for found in report["findings"]}
    assert states["socket"] == states["models"] == states["ledger"] == states["config"] == "ok"
    (models,) = [found for found in report["findings"] if found["check"] == "models"]
    assert "smollm2" in models["message"]
    assert report["ok"] == (answer.status == 0)


def test_as_text(ctl, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENCLAWD_SOCKET", str(tmp_path / "gone" / "s"))
    answer = ctl("doctor", "--state-dir", str(tmp_path))
    assert answer.status == 1
    first, second, *rest = answer.out.splitlines()
    assert first.startswith("failed   socket       the folder ")
    assert second.startswith(" " * 22)
    assert any(line.startswith("ok       config ") for line in rest)
    assert all(len(line) <= 100 or "/" in line for line in answer.out.splitlines())
