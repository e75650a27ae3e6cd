"""A torch model under the hardened unit with its drop-in, and libraries where README.Debian has
them: outside the package, in a virtual environment of the administrator's."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from harness import minilm_path
from system.conftest import bring_packages, install
from system.machine import booted_machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from system.machine import Machine

pytestmark = pytest.mark.timeout(600)

LIBRARIES: Final = "/opt/openclawd/lib/python3.11/site-packages"
FOLDER: Final = "/etc/systemd/system/openclawd.service.d"
EMBED: Final = "openclawctl embed --json --model minilm 'a warm model'"
CONFIG: Final = """\
models:
  minilm: {path: minilm, preload: true, required: true}
"""


def site_packages() -> Path:
    """The libraries of this test's own environment, torch among them."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parents[1]


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with booted_machine({site_packages(): LIBRARIES}) as machine:
        bring_packages(machine)
        install(machine)
        shutil.copytree(minilm_path(), machine.root / "var/lib/openclawd/models/minilm")
        machine.run("chgrp -R openclawd /var/lib/openclawd/models/minilm")
        machine.run("chmod -R g+rX /var/lib/openclawd/models/minilm")
        machine.write("/etc/openclawd/openclawd.yaml", CONFIG)
        yield machine


def test_a_torch_model_is_ready_under_its_drop_in(machine: Machine) -> None:
    machine.run(f"mkdir -p {FOLDER} && cp /usr/share/doc/openclawd/examples/torch.conf {FOLDER}")
    machine.run("systemctl daemon-reload && systemctl restart openclawd")
    (vector,) = json.loads(machine.run(EMBED))["embeddings"]
    assert len(vector) == 384
    assert machine.show("openclawd", "MemoryDenyWriteExecute") == "no"
