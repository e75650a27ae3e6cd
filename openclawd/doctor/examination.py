"""Every check, in an order in which causes come before what follows from them.

Root may look at everything, but whether the daemon may is the question: so what it needs is checked
as its user, who owns the state directory. There is no way back from that.
"""

from __future__ import annotations

import os
import pwd
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from openclawd.config import Config, ConfigError
from openclawd.doctor.files import Models, check_clock, check_disk, check_ledger
from openclawd.doctor.findings import Finding, State
from openclawd.doctor.machine import BuildUnknown, check_cpu, check_gpu, check_memory, read_build
from openclawd.doctor.port import check_port
from openclawd.metrics.__main__ import DEFAULT_LISTEN

if TYPE_CHECKING:
    from collections.abc import Callable

    from openclawd.config.places import Places

METRICS_PORT: Final = int(DEFAULT_LISTEN.rpartition(":")[2])

_SYSTEM_STATE: Final = "/var/lib/openclawd"
_SYSTEMD: Final = Path("/run/systemd/system")


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be examined. `read_config` raises `ConfigError`; `user` is the daemon's, where it
    is not the owner of the state directory."""

    places: Places
    read_config: Callable[[], Config]
    user: str | None = None
    metrics_port: int | None = None


def examine(subject: Subject, *, root: Path = Path("/")) -> list[Finding]:
    """Started as root, this process is the daemon's user afterwards."""
    places = subject.places
    findings = [check_port(subject.metrics_port or METRICS_PORT)]  # root sees who has it
    become_user(subject.user, places.state_dir)
    findings.append(check_disk(places.state_dir))
    findings.append(check_ledger(places.ledger_file))
    findings.append(check_clock(places.ledger_file, now=time.time()))
    found, weights_bytes = _check_config(subject)
    findings += found
    findings.append(check_memory(root, weights_bytes))
    findings.append(check_cpu(root, _build()))
    findings.append(check_gpu(root))
    return findings


def become_user(name: str | None, state_dir: Path) -> None:
    """What `name` may do from now on, or whoever owns the state directory; only root can."""
    if os.geteuid() != 0:
        return
    try:
        owner = pwd.getpwnam(name) if name else pwd.getpwuid(state_dir.stat().st_uid)
    except (OSError, KeyError):  # no such directory yet, or a user without a name
        return
    if owner.pw_uid != 0:
        os.initgroups(owner.pw_name, owner.pw_gid)
        os.setgid(owner.pw_gid)
        os.setuid(owner.pw_uid)


def _check_config(subject: Subject) -> tuple[list[Finding], dict[str, int]]:
    """With what hangs on it: the models, and the weights of those that can be read."""
    file = subject.places.config_file
    try:
        config = subject.read_config()
    except ConfigError as error:
        remedy = f"correct it, then `{subject.places.check_command} && openclawctl reload`"
        if file is None:
            remedy = "put the file there, or start the daemon with other --models"
        wrong = [Finding("config", State.FAILED, str(each), remedy) for each in error.findings]
        return wrong, {}
    message = f"{file} is valid" if file else "there is no configuration file: all is by default"
    state_dir = str(subject.places.state_dir)
    is_unit = _SYSTEMD.is_dir() and state_dir.startswith(_SYSTEM_STATE)
    models = Models(config, is_unit=is_unit)
    return [Finding("config", State.OK, message), *models.check()], models.weights_bytes


def _build() -> frozenset[str] | BuildUnknown:
    try:
        return read_build()
    except BuildUnknown as problem:
        return problem
