"""Which backend a worker takes, and what it says of a library that is not there."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from worker.driver import running_worker

from openclawd.worker.backends import load_of
from openclawd.worker.messages import LoadFailed

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("backend", "is_folder", "module"),
    [
        ("auto", True, "pytorch"),
        ("auto", False, "llama"),
        ("torch", True, "pytorch"),
        ("llama", True, "llama"),
    ],
)
def test_a_folder_is_torchs_unless_the_configuration_says_otherwise(
    folder: Path, backend: str, is_folder: bool, module: str
) -> None:
    for name in ("config.json", "model.safetensors"):
        (folder / name).touch()
    path = folder if is_folder else folder / "x.gguf"
    assert load_of(backend, str(path)).__module__ == f"openclawd.backends.{module}"


@pytest.mark.parametrize(
    ("blocked", "path", "said"),
    [
        ("torch", "", "torch or transformers cannot be imported.*openclawd.torch"),
        ("llama_cpp", "/x.gguf", "llama-cpp-python cannot be imported.*openclawd.daemon"),
    ],
)
def test_a_library_that_is_not_installed_is_named(
    folder: Path, blocked: str, path: str, said: str
) -> None:
    for name in ("config.json", "model.safetensors"):
        (folder / name).touch()
    script = (
        f"import sys; sys.modules[{blocked!r}] = None\n"
        "from openclawd.backends.base import CannotLoad\n"
        "from openclawd.worker.backends import load_of\n"
        f"try: load_of('auto', {path or str(folder)!r})\n"
        "except CannotLoad as failure: print(failure.message, failure.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert re.search(said, done.stdout), (done.stdout, done.stderr)


def test_a_folder_that_is_no_model_fails_with_its_reason(folder: Path) -> None:
    with running_worker(folder) as worker:
        failed = worker.load(folder)
        assert isinstance(failed, LoadFailed), failed
        assert "has no config.json" in failed.message
        assert failed.permanent
