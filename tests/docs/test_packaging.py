"""What the package says to an administrator agrees with the project."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "packaging" / "debian" / "openclawd.README.Debian").read_text()
UNITS = sorted((ROOT / "packaging" / "systemd").glob("openclawd*.s*"))


def test_libraries_to_add_are_those_that_the_project_needs() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    needed = {*extras["daemon"], *extras["torch"]}
    named = set(re.findall(r"\b(?:torch|transformers|llama-cpp-python)[=<>][^\s']+", README))
    assert len(named) == 3
    assert named <= needed


def test_units_name_manual_pages_that_there_are() -> None:
    for unit in UNITS:
        for page, section in re.findall(r"man:([\w-]+)\((\d)\)", unit.read_text()):
            assert (ROOT / "man" / f"{page}.{section}").exists(), unit.name


def test_drop_ins_that_are_named_are_there() -> None:
    drop_ins = {file.name for file in (ROOT / "packaging" / "systemd" / "drop-ins").iterdir()}
    assert drop_ins == set(re.findall(r"\b[\w-]+\.conf\b", README))
