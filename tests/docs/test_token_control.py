"""`docs/token-control.md`: its example passes `openclawd --check-config`, its codes are real."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from openclawctl.wire.errors import CODES, Code
from openclawd.config.schema import Config

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "token-control.md").read_text()


def test_the_example_is_valid(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "openclawd.yaml").write_text(example)
    run = subprocess.run(
        [sys.executable, "-m", "openclawd", "--check-config", "--config", "openclawd.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "is valid; models: smollm2" in run.stdout + run.stderr


def test_the_sections_are_keys():
    rows = re.findall(r"^\| \d \| .*\| `(\w+)` \| [^|]*\|$", TEXT, re.MULTILINE)
    assert len(rows) == 8
    assert set(rows) <= set(Config.model_fields)


def test_every_refusal_has_its_exit_status():
    rows = re.findall(r"^\| `([\w-]+)`, (\d) \|", TEXT, re.MULTILINE)
    assert len(rows) == 8
    for code, status in rows:
        assert CODES[Code(code)].exit_status == int(status), code


def test_it_is_linked():
    assert "](docs/token-control.md)" in (ROOT / "README.md").read_text()
