"""A new user's day: every block of commands of README and guide, in their order, on a fresh
machine, and nothing else. What came of it is looked at afterwards."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Final

import pytest
from guide import Block, blocks
from harness import smollm2_path
from system.conftest import DEBS
from system.test_boot import answer

if TYPE_CHECKING:
    from pathlib import Path

    from system.machine import Machine

pytestmark = pytest.mark.timeout(900)

CLONE: Final = "root/openclawd"
"""Where the reader is: in the project's folder, with the packages built and a model at hand."""

PROMETHEUS: Final = "http://127.0.0.1:9090/api/v1"

RUN: Final = [block for block in blocks() if not block.not_run]


@pytest.fixture(scope="module")
def place(fresh_machine: Machine, next_version: Path) -> Machine:
    folder = fresh_machine.root / CLONE
    (folder / "build").mkdir(parents=True)
    shutil.copytree(DEBS, folder / "build" / "deb", ignore=shutil.ignore_patterns("vendor"))
    shutil.copytree(next_version, folder / "next")
    shutil.copy(smollm2_path(), folder)
    return fresh_machine


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
    assert "+next" in place.run("dpkg-query -W openclawd openclawctl")
    budget = json.loads(place.run("openclawctl budgets --json"))
    assert "shop" in json.dumps(budget)
    place.wait(f"curl -s '{PROMETHEUS}/query?query=openclawd_healthy' | grep '\"1\"'")
    rules = answer(place.run(f"curl -s {PROMETHEUS}/rules"))["data"]["groups"]
    assert "openclawd" in json.dumps(rules)
    assert "openclawd_healthy 1" in place.run("curl -s http://127.0.0.1:9867/metrics")
    assert "is active" in place.run("openclawctl doctor")
