"""The packages themselves, and their life on a machine: installed, upgraded under load, removed,
purged."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from system.conftest import DEBS, configure, install
from system.machine import fresh_root
from system.test_boot import ASK, LOAD, answer, entries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from system.machine import Machine

pytestmark = pytest.mark.timeout(600)

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = ROOT / "man"
VENDOR: Final = DEBS / "vendor"
"""What `make deb` leaves beside the packages: wheels, and llama.cpp compiled."""

KEPT: Final = (
    *("/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow", "/etc/.pwd.lock"),
    *("/var/lib/dpkg", "/var/log", "/var/cache", "/var/lib/systemd/catalog"),
)
"""What changes and is not the packages': the users that stay by policy, dpkg's own books, caches
and the journal's catalog."""

METRICS: Final = "http://127.0.0.1:9867/metrics"

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


def test_a_second_build_has_the_same_contents(tmp_path: Path) -> None:
    """Elsewhere, in another time zone and language, with another umask. What `vendor` brought is
    taken as it is: llama.cpp is not compiled a second time."""
    if not VENDOR.is_dir():
        pytest.skip("what the packages were built of is not beside them")
    command = f"umask 077 && {ROOT}/packaging/debian/build {VENDOR} {tmp_path / 'out'}"
    environ = {**os.environ, "TZ": "Pacific/Kiritimati", "LC_ALL": "C", "HOME": str(tmp_path)}
    subprocess.run(
        ["sh", "-c", command], env=environ, check=True, stdin=subprocess.DEVNULL, timeout=500
    )
    assert sums(tmp_path / "out") == sums(DEBS)


def sums(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("*.deb"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


# ---- their life where nothing runs ----


def test_in_a_root_where_nothing_runs_they_come_and_go_without_a_trace(next_version: Path) -> None:
    """As piuparts tries it: installed, upgraded, removed, purged, and the root is as before."""
    with fresh_root() as root:
        policy = root / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        before = dict(things(root))
        for folder, source in (("this", DEBS), ("next", next_version)):
            (root / "tmp" / folder).mkdir()
            for deb in source.glob("*.deb"):
                shutil.copy(deb, root / "tmp" / folder)
        said = inside(root, "dpkg -i /tmp/this/*.deb && dpkg -i /tmp/next/*.deb")
        said += inside(root, "openclawctl version; openclawd --check-config")
        said += inside(root, "dpkg --remove openclawd openclawctl")
        removed = dict(things(root))
        said += inside(root, "dpkg --purge openclawd && rm -r /tmp/this /tmp/next")
        after = dict(things(root))
    assert "warning" not in said.lower()
    assert "/etc/openclawd/openclawd.yaml" in removed
    assert not any(path.startswith("/usr/lib/openclawd") for path in removed)
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed == set()


def inside(root: Path, command: str) -> str:
    done = subprocess.run(
        ["chroot", root, "sh", "-ec", command],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def things(root: Path) -> Iterator[tuple[str, object]]:
    """Every file and folder of a root but those of `KEPT`, and what must not change about it."""
    for folder, folders, files in os.walk(root):
        place = os.path.normpath(f"/{os.path.relpath(folder, root)}")
        folders[:] = [name for name in folders if os.path.join(place, name) not in KEPT]
        for name in (*folders, *files):
            path = os.path.join(place, name)
            if path.rstrip("-") in KEPT:
                continue
            found = os.lstat(os.path.join(folder, name))
            size = found.st_size if stat.S_ISREG(found.st_mode) else 0
            yield path, (found.st_mode, found.st_uid, found.st_gid, size)


# ---- their life on a machine ----


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


def test_the_journal_explains_its_entries(fresh_machine: Machine) -> None:
    ready = "journalctl -u openclawd -x --no-pager MESSAGE_ID=481e0a2892dd40ee9342fb8bbc089ec3"
    assert "Subject: openclawd is ready" in fresh_machine.run(ready)


def test_an_upgrade_under_load_refuses_nothing_and_keeps_the_state(
    fresh_machine: Machine, next_version: Path
) -> None:
    """What was started beside the service becomes the new program, too."""
    machine = fresh_machine
    configure(machine)
    machine.run("systemctl start openclawd-metrics.socket openclawd@two")
    machine.run(f"curl -sf {METRICS} >/dev/null")
    others = ("openclawd-metrics", "openclawd@two")
    pids = [machine.show(unit, "MainPID") for unit in others]
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
    assert not set(pids) & {machine.show(unit, "MainPID") for unit in others}
    machine.run("openclawctl --socket /run/openclawd/two.sock ping")
    assert "openclawd_healthy 1" in machine.run(f"curl -sf {METRICS}")


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
    assert machine.run("systemctl list-units --no-legend --state=active 'openclawd*'") == ""
    machine.run(
        "test -e /etc/openclawd/openclawd.yaml && test -e /var/lib/openclawd/ledger.sqlite3"
    )
    assert machine.attempt("test -e /usr/lib/openclawd").returncode != 0


def test_purged_nothing_is_left_but_its_users(fresh_machine: Machine) -> None:
    """And what the administrator's instances have: that goes by hand (README.Debian)."""
    machine = fresh_machine
    machine.run("dpkg --purge openclawd openclawctl")
    left = machine.run(
        "find / -xdev -not -path '/proc/*' -not -path '/root/*' -not -path '/tmp/*'"
        " -iname '*openclaw*' -prune -print | sort"
    )
    assert left.split() == [f"/{place}/openclawd-two" for place in ("etc", "var/lib", "var/log")]
    assert machine.run("id openclawd && getent group openclaw")  # as policy has it


def test_it_can_be_installed_again(fresh_machine: Machine) -> None:
    fresh_machine.run("dpkg -i /root/*.deb")
    assert fresh_machine.run("openclawctl ping")
    assert entries(fresh_machine, "-n 1")
