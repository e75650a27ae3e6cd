"""The packages themselves, and their life on a machine: installed, upgraded under load, removed,
purged."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from system.conftest import DEBS, configure, install
from system.test_boot import ASK, LOAD, answer, entries

if TYPE_CHECKING:
    from system.machine import Machine

pytestmark = pytest.mark.timeout(600)

PAGES: Final = Path(__file__).parents[2] / "man"

OLD_LEDGER: Final = """
import time
from pathlib import Path
from openclawd.ledger.storage import MIGRATIONS, open_database
path = Path("/var/lib/openclawd/ledger.sqlite3")
for file in path.parent.glob("ledger.sqlite3*"):
    file.unlink()
database = open_database(path, MIGRATIONS[:1])
database.execute(
    "INSERT INTO requests (request_id, node, principal, model, op, state, arrived_at,"
    " reserved_tokens) VALUES ('a', 'n', 'user:alice', 'old-model', 'chat', 'done', ?, 110)",
    [time.time() - 3600],
)
database.execute("INSERT INTO tokens VALUES ('a', 'completion', 42)")
database.close()
"""


# ---- the files ----


def test_lintian_finds_nothing() -> None:
    if shutil.which("lintian") is None:
        pytest.skip("lintian is not installed")
    (changes,) = DEBS.glob("*.changes")
    done = subprocess.run(
        ["lintian", "--fail-on", "error,warning", changes],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_man_pages_are_clean() -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not installed")
    pages = sorted(PAGES.glob("*.[1-8]"))
    done = subprocess.run(
        ["mandoc", "-T", "lint", *pages], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


# ---- their life ----


def test_a_fresh_installation_runs_without_a_model(fresh_machine: Machine) -> None:
    install(fresh_machine)
    assert fresh_machine.show("openclawd", "ActiveState") == "active"
    assert "put a GGUF file into" in fresh_machine.show("openclawd", "StatusText")
    assert fresh_machine.run("openclawctl ping")
    owners = fresh_machine.run("stat -c '%U:%G %a' /var/lib/openclawd /var/lib/openclawd/models")
    assert owners.splitlines() == ["openclawd:openclawd 700", "openclawd-fetch:openclawd 2750"]


def test_completions_are_there(fresh_machine: Machine) -> None:
    script = "COMP_WORDS='openclawctl gen' COMP_CWORD=1 _OPENCLAWCTL_COMPLETE=bash_complete"
    assert "generate" in fresh_machine.run(f"{script} openclawctl")
    assert fresh_machine.run("bash -n /usr/share/bash-completion/completions/openclawctl") == ""


def test_an_upgrade_under_load_refuses_nothing_and_keeps_the_state(
    fresh_machine: Machine, next_version: Path
) -> None:
    machine = fresh_machine
    configure(machine)
    machine.run(ASK)
    before = answer(machine.run("openclawctl usage --json"))
    shutil.copytree(next_version, machine.root / "root" / "next")
    machine.write("/home/alice/load.py", LOAD)
    load = machine.start("python3 /home/alice/load.py", user="alice")
    machine.wait("test $(cat /home/alice/started) -ge 30")
    machine.run("dpkg -i /root/next/*.deb")
    output, _ = load.communicate(timeout=400)
    assert output.strip() == "0 of 300 failed"
    assert "+next" in machine.run("dpkg-query -W openclawd")
    after = json.dumps(answer(machine.run("openclawctl usage --json")))
    assert before != after


def test_a_ledger_of_an_older_version_is_migrated_with_a_backup(fresh_machine: Machine) -> None:
    machine = fresh_machine
    machine.run("systemctl stop openclawd.socket openclawd")
    machine.write("/usr/local/lib/old.py", OLD_LEDGER)
    machine.run("runuser -u openclawd -- /usr/lib/openclawd/bin/python3 /usr/local/lib/old.py")
    machine.run("systemctl start openclawd")
    assert "old-model" in machine.run("openclawctl usage --json --by model")
    mode = machine.run("stat -c '%U %a' /var/lib/openclawd/ledger.sqlite3.v1.bak")
    assert mode == "openclawd 600\n"


def test_removed_it_stops_and_keeps_what_is_the_administrators(fresh_machine: Machine) -> None:
    machine = fresh_machine
    machine.run("dpkg --remove openclawd openclawctl")
    assert machine.attempt("systemctl is-active openclawd openclawd.socket").returncode != 0
    assert machine.attempt("pgrep -f '[o]penclawd'").returncode != 0
    machine.run(
        "test -e /etc/openclawd/openclawd.yaml && test -e /var/lib/openclawd/ledger.sqlite3"
    )
    assert machine.attempt("test -e /usr/lib/openclawd").returncode != 0


def test_purged_nothing_is_left_but_its_users(fresh_machine: Machine) -> None:
    machine = fresh_machine
    machine.run("dpkg --purge openclawd openclawctl")
    left = machine.run(
        "find / -xdev -not -path '/proc/*' -not -path '/root/*' -not -path '/var/log/*'"
        " -not -path '/tmp/*' -iname '*openclaw*'"
    )
    assert left == ""
    assert machine.run("id openclawd && getent group openclaw")  # as policy has it


def test_it_can_be_installed_again(fresh_machine: Machine) -> None:
    fresh_machine.run("dpkg -i /root/*.deb")
    assert fresh_machine.run("openclawctl ping")
    assert entries(fresh_machine, "-n 1")
