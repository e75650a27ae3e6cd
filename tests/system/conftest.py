"""A machine on which the built packages are installed. Collected only when `make system-test` (or
`.ci/run`) says where the packages are: `OPENCLAWD_DEBS`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import smollm2_path
from system.machine import Machine, booted_machine

if TYPE_CHECKING:
    from collections.abc import Iterator

DEBS = Path(os.environ.get("OPENCLAWD_DEBS", ""))
collect_ignore_glob = [] if "OPENCLAWD_DEBS" in os.environ else ["test_*.py"]

MODEL = "SmolLM2-135M-Instruct.Q4_1"
CONFIG = f"""\
models:
  smollm2: {{path: {MODEL}.gguf, preload: true, required: true, parallel: 4, context: 1024}}
  other: {{path: {MODEL}.gguf, preload: true, parallel: 2, context: 256}}
default_model: smollm2
resource_limits: {{step_timeout: 20s, drain_timeout: 60s}}
security: {{groups: {{openclaw: {{role: user}}}}}}
budgets:
  - {{name: alerting, match: {{session: alerting}}, tokens: 100, window: day, alerts: [0.01]}}
notify: {{command: [/usr/local/bin/alert, budget]}}
"""
"""What the whole list of tests runs with."""


@pytest.fixture(scope="module")
def fresh_machine() -> Iterator[Machine]:
    """With the packages' files in /root, a member of the group openclaw to be, and a stranger."""
    with booted_machine() as machine:
        bring_packages(machine)
        yield machine


@pytest.fixture(scope="module")
def next_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same packages under a higher version."""
    folder = tmp_path_factory.mktemp("next")
    for deb in DEBS.glob("*.deb"):
        tree = folder / deb.stem
        subprocess.run(["dpkg-deb", "--raw-extract", deb, tree], check=True)
        control = tree / "DEBIAN" / "control"
        version = subprocess.check_output(["dpkg-deb", "-f", deb, "Version"], text=True).strip()
        control.write_text(control.read_text().replace(version, f"{version}+next"))
        command = ["dpkg-deb", "--build", "-Zgzip", "-z1", tree, folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(tree)
    return folder


def bring_packages(machine: Machine) -> None:
    for deb in DEBS.glob("*.deb"):
        shutil.copy(deb, machine.root / "root")


def install(machine: Machine) -> None:
    machine.run("dpkg -i /root/*.deb")
    machine.run("useradd --create-home --groups openclaw alice && useradd --create-home bob")


def configure(machine: Machine) -> None:
    """Once; further ones only restart what they change."""
    models = machine.root / "var/lib/openclawd/models"
    shutil.copy(smollm2_path(), models / f"{MODEL}.gguf")
    machine.run(
        "chgrp openclawd /var/lib/openclawd/models/* && chmod 640 /var/lib/openclawd/models/*"
    )
    machine.write("/etc/openclawd/openclawd.yaml", CONFIG)
    alert = '#!/bin/sh\necho "$1 $OPENCLAW_BUDGET at $OPENCLAW_SHARE, uid $(id -u)" >&2\n'
    machine.write("/usr/local/bin/alert", alert)
    machine.run("chmod 755 /usr/local/bin/alert && systemctl restart openclawd")
