"""What stands between a caller and the daemon: the installation, the unit, the socket.

Owns the checks that need no code of the daemon's; that has its own (`openclawd --doctor`), which is
started as a program, because this may be another Python without it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from openclawctl import __version__, paths
from openclawctl.cli import launch
from openclawctl.client import Client
from openclawctl.wire.errors import DaemonUnreachable, OpenclawError

OK: Final = "ok"
UNKNOWN: Final = "unknown"
WARNING: Final = "warning"
FAILED: Final = "failed"

CLOCK_TOLERANCE_S: Final = 60.0
"""The daemon says when it started some time after the kernel started its process."""

_ANSWER_TIMEOUT_S: Final = 10.0
_EXAMINATION_TIMEOUT_S: Final = 600.0  # hundreds of models on a slow disk
_SYSTEMCTL_TIMEOUT_S: Final = 20.0
_CONFIG_EXIT: Final = "78"
_SYSTEM_FOLDER: Final = "/run/openclawd"

_PROPERTIES: Final = "LoadState,ActiveState,Result,ExecMainStatus,MainPID,NRestarts,StatusText"


class Finding(NamedTuple):
    """See `openclawd.doctor.findings.Finding`, which says the same of the daemon's machine."""

    check: str
    state: str
    message: str
    remedy: str = ""


class Subject(NamedTuple):
    """Which daemon is meant: by its socket, and by what it would be started with, where that is not
    what it runs with."""

    socket_path: str
    arguments: list[str]
    metrics_port: int | None = None
    api_key_file: str | None = None

    @property
    def unit(self) -> str:
        """The unit that a socket of the system belongs to; empty of a daemon of one's own."""
        folder, name = os.path.split(self.socket_path)
        if folder != _SYSTEM_FOLDER or not name.endswith(".sock"):
            return ""
        instance = name.removesuffix(".sock")
        return "openclawd" if instance == "openclawd" else f"openclawd@{instance}"


def diagnose(subject: Subject) -> list[Finding]:
    """Everything that was looked at, the worst first."""
    unit = read_unit(f"{subject.unit}.service") if subject.unit else {}
    findings = [check_unit(subject.unit, unit)] if unit else []
    findings += check_socket(subject)
    findings += examine(subject, main_pid=int(unit.get("MainPID") or 0))
    worst_first = (FAILED, WARNING, UNKNOWN, OK)
    return sorted(findings, key=lambda finding: worst_first.index(finding.state))


# ---- the unit ----


def read_unit(unit: str) -> dict[str, str]:
    """What systemd says of it; empty where there is no systemd."""
    systemctl = shutil.which("systemctl")
    if systemctl is None or not Path("/run/systemd/system").is_dir():
        return {}
    answer = subprocess.run(
        [systemctl, "show", f"--property={_PROPERTIES}", unit],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SYSTEMCTL_TIMEOUT_S,
        check=False,
    )
    lines = (line.partition("=") for line in answer.stdout.splitlines())
    return {name: value for name, _, value in lines}


def check_unit(name: str, unit: dict[str, str]) -> Finding:
    """`unit` is what `read_unit` says of the service called so."""
    state = unit.get("ActiveState", "")
    if unit.get("LoadState") == "not-found":
        message = f"systemd knows no {name}.service"
        remedy = "install the package openclawd, or start a daemon of your own: `openclawctl daemon"
        return Finding("unit", WARNING, message, f"{remedy} start`")
    if state == "failed":
        return _failed_unit(name, unit)
    if state in ("active", "reloading"):
        restarts = int(unit.get("NRestarts") or 0)
        if restarts:
            message = f"{name}.service runs, but systemd had to start it again {restarts} times"
            return Finding("unit", WARNING, message, _journal(name))
        return Finding("unit", OK, f"{name}.service is active: {unit.get('StatusText', '')}")
    if state == "activating":
        message = f"{name}.service is starting: {unit.get('StatusText') or 'models are loading'}"
        return Finding("unit", WARNING, message, f"wait, and watch: `journalctl -fu {name}`")
    message = f"{name}.service is {state or 'not running'}"
    remedy = f"`systemctl start {name}`; to have it at every boot, `systemctl enable {name}`"
    return Finding("unit", WARNING, message, remedy)


_WHY_FAILED: Final = {
    "watchdog": "its watchdog heard nothing of it for too long",
    "oom-kill": "the kernel ended it, for want of memory",
    "start-limit-hit": "it was started again too often",
    "timeout": "it was not ready in time",
    "signal": "a signal ended it",
    "core-dump": "a signal ended it",
    "resources": "something that it needs could not be had",
}


def _failed_unit(name: str, unit: dict[str, str]) -> Finding:
    status = unit.get("ExecMainStatus", "")
    why = _WHY_FAILED.get(unit.get("Result", ""), f"it ended with exit status {status}")
    remedy = f"{_journal(name)}; then `systemctl reset-failed {name} && systemctl start {name}`"
    if status == _CONFIG_EXIT:
        why = "its configuration is wrong"
        remedy = f"`openclawctl config check{_file_of_instance(name)}`; {remedy}"
    return Finding("unit", FAILED, f"{name}.service is dead: {why}", remedy)


def _file_of_instance(name: str) -> str:
    """An instance has a configuration of its own, which must be named."""
    folder = _directories(name)["CONFIGURATION_DIRECTORY"]
    return "" if name == "openclawd" else f" {folder}/openclawd.yaml"


def _journal(name: str) -> str:
    return f"see why: `journalctl -u {name} -n 50 --no-pager`"


# ---- the socket, and who answers behind it ----


def check_socket(subject: Subject) -> list[Finding]:
    """Can this user talk to the daemon, and is it of this version and of this time?"""
    path = subject.socket_path
    if not os.path.isdir(os.path.dirname(path)):
        return [_no_folder(path)]
    try:
        with Client(
            path, timeout_s=_ANSWER_TIMEOUT_S, api_key_file=subject.api_key_file, app="doctor"
        ) as client:
            server = str(client.ping().get("server", "?"))
            findings = [_version(path, server)]
            findings += _clock_since_start(client)
            return findings
    except DaemonUnreachable as error:
        return [Finding("socket", FAILED, error.message, error.hint)]
    except OpenclawError as error:
        return [Finding("socket", FAILED, f"{path}: {error.message}", error.hint)]


def _no_folder(path: str) -> Finding:
    folder = os.path.dirname(path)
    if folder == _SYSTEM_FOLDER:
        remedy = (
            "`systemd-tmpfiles --create openclawd.conf && systemctl restart openclawd.socket`;"
            " without systemd, `openclawctl daemon start`"
        )
    else:
        remedy = "is --socket or $OPENCLAWD_SOCKET right?"
        if folder == paths.user_runtime_dir():
            remedy = f"`openclawctl daemon start` makes it; {remedy}"
        else:
            remedy += f" If so, `mkdir -p {shlex.quote(folder)}`, then `openclawctl daemon start`"
    message = f"the folder {folder} is missing, so there can be no socket {os.path.basename(path)}"
    return Finding("socket", FAILED, message, remedy)


def _version(path: str, server: str) -> Finding:
    answered = f"{server} answers at {path}"
    if server.rpartition(" ")[2] == __version__:
        return Finding("socket", OK, answered)
    message = f"{answered}, and this is openclawctl {__version__}"
    return Finding("socket", WARNING, message, "restart the daemon if it was upgraded just now")


def _clock_since_start(client: Client) -> list[Finding]:
    """Was the clock set since the daemon started? Its process has an age by the kernel's monotonic
    clock, and a time of birth by the wall clock."""
    try:
        server = client.status().get("server", {})
        age_s = _age_s(int(server["pid"]))
        jump_s = time.time() - age_s - float(server["started_at"])
    except (OpenclawError, OSError, KeyError, ValueError):
        return []  # not for this user to see
    if abs(jump_s) < CLOCK_TOLERANCE_S:
        return []
    way = "forward" if jump_s > 0 else "back"
    message = f"the clock was set {way} by {abs(jump_s):.0f} s since the daemon started"
    remedy = (
        "look at `timedatectl`; reports and budgets by the day hold what was used at the wrong time"
    )
    return [Finding("clock", WARNING, message, remedy)]


def _age_s(pid: int) -> float:
    """Since the process was started, suspended time included (proc(5), `starttime`)."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        started_ticks = int(file.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")


# ---- what the daemon itself says of the machine ----


def examine(subject: Subject, *, main_pid: int) -> list[Finding]:
    """`main_pid` is the daemon's as systemd knows it, or 0."""
    try:
        command = [*launch.daemon_command_line(), "--doctor"]
    except OpenclawError as error:
        message = f"{error.message}: the machine and the daemon's files were not looked at"
        return [Finding("installation", WARNING, message, error.hint)]
    answer = subprocess.run(
        [*command, *_arguments(subject, main_pid)],
        env={**os.environ, **_directories(subject.unit)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_EXAMINATION_TIMEOUT_S,
        check=False,
    )
    try:
        rows: list[dict[str, Any]] = json.loads(answer.stdout)["findings"]
        return [Finding(**row) for row in rows]
    except (ValueError, KeyError, TypeError):
        said = answer.stderr.strip().splitlines()[-1:] or [f"exit status {answer.returncode}"]
        message = f"`{' '.join(command)}` failed: {said[0]}"
        remedy = "is the installed openclawd of the same version? `openclawctl version`"
        return [Finding("installation", FAILED, message, remedy)]


def _arguments(subject: Subject, main_pid: int) -> list[str]:
    port = [] if subject.metrics_port is None else ["--metrics-port", str(subject.metrics_port)]
    return [*(subject.arguments or _arguments_of_running(subject, main_pid)), *port]


def _arguments_of_running(subject: Subject, main_pid: int) -> list[str]:
    """Nothing if no daemon runs."""
    try:
        running = launch.find_running(subject.socket_path)
        pid = running.pid if running and running.pid != 1 else main_pid
        return launch.arguments_of(pid) if pid else []
    except (OpenclawError, OSError):
        return []


def _directories(unit: str) -> dict[str, str]:
    """Where systemd has the daemon look, whoever asks."""
    if not unit:
        return {}
    name = re.sub("^openclawd@", "openclawd-", unit)
    return {
        "RUNTIME_DIRECTORY": f"/run/{name}",
        "STATE_DIRECTORY": f"/var/lib/{name}",
        "CONFIGURATION_DIRECTORY": f"/etc/{name}",
    }
