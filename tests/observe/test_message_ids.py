"""Every `MESSAGE_ID` is used, and the catalog explains each of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from openclawd.observe import message_ids

ROOT = Path(__file__).parents[2]
CATALOG = ROOT / "packaging" / "systemd" / "openclawd.catalog"
IDS = {name: value for name, value in vars(message_ids).items() if name.isupper()}
ENTRY = re.compile(
    r"-- ([0-9a-f]{32})\nSubject: (.+)\nDefined-By: openclawd\nDocumentation: man:\S+\n\n"
    r"((?:.+\n|\n)+?)(?=\n-- |\Z)"
)


def test_they_differ_and_have_the_form_of_the_journal():
    assert len(set(IDS.values())) == len(IDS)
    assert all(re.fullmatch("[0-9a-f]{32}", value) for value in IDS.values())


def test_the_catalog_has_each_of_them_and_no_other():
    entries = ENTRY.findall(CATALOG.read_text())
    assert [entry[0] for entry in entries] == list(IDS.values())
    assert all(text.strip() for _, _, text in entries)


def test_each_is_logged_somewhere():
    source = "\n".join(path.read_text() for path in (ROOT / "openclawd").rglob("*.py"))
    for name in IDS:
        assert f"message_ids.{name}" in source, name


def test_commands_in_the_catalog_exist():
    from openclawctl.cli import COMMANDS

    named = set(re.findall(r"^  openclawctl (\w+)", CATALOG.read_text(), re.MULTILINE))
    assert named <= COMMANDS.keys()


@pytest.mark.skipif(shutil.which("journalctl") is None, reason="systemd's journalctl is not here")
def test_systemd_reads_it(tmp_path):
    folder = tmp_path / "usr" / "lib" / "systemd" / "catalog"
    folder.mkdir(parents=True)
    shutil.copy(CATALOG, folder)
    (tmp_path / "var" / "lib" / "systemd" / "catalog").mkdir(parents=True)
    subprocess.run(["journalctl", "--update-catalog", "--root", tmp_path], check=True)
    listed = subprocess.run(
        ["journalctl", "--list-catalog", "--root", tmp_path],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert all(value in listed for value in IDS.values())
