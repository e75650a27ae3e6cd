"""The sentences for files that cannot be a model."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from openclawd.backends.base import CannotLoad
from openclawd.backends.gguf_file import check_gguf_file

if TYPE_CHECKING:
    from pathlib import Path


def header(version: int = 3, num_tensors: int = 1) -> bytes:
    return struct.pack("<4sIqq", b"GGUF", version, num_tensors, 1)


def failure_of(path: Path) -> CannotLoad:
    with pytest.raises(CannotLoad) as failure:
        check_gguf_file(str(path))
    assert str(path) in failure.value.message
    assert failure.value.permanent
    assert failure.value.hint
    return failure.value


def test_a_model_passes(model_path: Path) -> None:
    check_gguf_file(str(model_path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"{}", "not a GGUF file"),
        (b"PK\x03\x04 and so on, this is an archive", "not a GGUF file"),
        (header()[:10], "ends inside its header"),
        (header(num_tensors=0), "only a vocabulary"),
        (header(version=3 << 24), "big-endian"),
    ],
)
def test_what_is_wrong_is_said(folder: Path, content: bytes, said: str) -> None:
    path = folder / "model.gguf"
    path.write_bytes(content)
    assert said in failure_of(path).message


def test_a_missing_file(folder: Path) -> None:
    assert "does not exist" in failure_of(folder / "none.gguf").message


def test_a_directory(folder: Path) -> None:
    assert "is a directory" in failure_of(folder).message


def test_a_fifo_does_not_hold_up_the_load(folder: Path) -> None:
    path = folder / "fifo.gguf"
    os.mkfifo(path)
    assert "not a regular file" in failure_of(path).message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(folder: Path) -> None:
    path = folder / "secret.gguf"
    path.write_bytes(header())
    path.chmod(0)
    assert "may not read" in failure_of(path).message


def test_a_file_in_the_place_of_a_directory(folder: Path) -> None:
    (folder / "file").write_bytes(b"")
    with pytest.raises(CannotLoad, match="cannot be read"):
        check_gguf_file(str(folder / "file" / "model.gguf"))
