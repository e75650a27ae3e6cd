"""`docs/structure.md` names real code, and every room."""

from __future__ import annotations

import configparser
import importlib
import re
from pathlib import Path

import pytest

import openclawd.backends.llama  # opens descriptors for good when first imported
import openclawd.backends.pytorch  # noqa: F401 - the same

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "structure.md").read_text()
NAMES = sorted(set(re.findall(r"`(openclaw(?:d|ctl)(?:\.\w+)+)`", TEXT)))


def resolve(name: str) -> object:
    """The module, class, function or constant of a dotted name."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[end:]:
            found = getattr(found, attribute)
        return found
    raise AssertionError(f"nothing is called {name}")


@pytest.mark.parametrize("name", NAMES)
def test_every_name_exists(name: str) -> None:
    assert resolve(name) is not None


@pytest.mark.parametrize(
    "question",
    ["a token sampled", "a limit checked", "a frame parsed", "a worker restarted", "a usage row"],
)
def test_the_questions_of_a_newcomer_are_answered_with_functions(question: str) -> None:
    (row,) = [line for line in TEXT.splitlines() if line.startswith(f"| {question}")]
    names = re.findall(r"`(openclaw[\w.]+)`", row)
    assert names
    assert all(callable(resolve(name)) for name in names)


def test_every_layer_of_the_contracts_is_a_room() -> None:
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    for package in ("client", "daemon"):
        section = contracts[f"importlinter:contract:{package}-layers"]
        layers = re.findall(r"\w+", section["layers"])
        root = section["containers"]
        missing = [x for x in layers if x != "__main__" and f"`{root}.{x}`" not in TEXT]
        assert not missing
