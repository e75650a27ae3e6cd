"""What importing the client brings with it: this is what a script pays at every start."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import openclawctl
from openclawctl.options import CompletionOptions
from openclawctl.wire.sampling import Sampling

_PROGRAM = """
import sys
before = set(sys.modules)
{statement}
tops = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(*sorted(tops - set(sys.stdlib_module_names)), sep=" ")
print(*sorted({{"asyncio", "platformdirs", "click", "rich"}} & set(sys.modules)), sep=" ")
"""


def _loaded(statement):
    program = _PROGRAM.format(statement=statement)
    command = [sys.executable, "-c", program]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    third_party, heavy = answer.stdout.split("\n")[:2]
    return third_party.split(), heavy.split()


@pytest.mark.parametrize(
    ("statement", "third_party", "heavy"),
    [
        ("import openclawctl", {"openclawctl"}, []),
        ("from openclawctl import Client, DeadlineExceeded", {"msgpack", "openclawctl"}, []),
        ("from openclawctl import AsyncClient", {"msgpack", "openclawctl"}, ["asyncio"]),
    ],
)
def test_imports_stay_light(statement, third_party, heavy):
    found, found_heavy = _loaded(statement)
    own_to_compiled_code = {"cython_runtime", "_cython"}
    assert {
        name for name in found if not name.startswith(tuple(own_to_compiled_code))
    } == third_party
    assert found_heavy == heavy


def test_version_is_the_distribution_s():
    assert openclawctl.__version__ == version("openclawd")


def test_every_sampling_parameter_is_a_keyword():
    assert set(Sampling.__slots__) <= set(CompletionOptions.__annotations__)
