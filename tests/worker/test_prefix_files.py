"""Saved prefixes: what is written comes back, and nothing else does."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawd.engine.prefixes import Owner
from openclawd.worker.prefix_files import PrefixFolder, SavedPrefix, file_identity

if TYPE_CHECKING:
    from pathlib import Path

PINNED = SavedPrefix(Owner(None), [1, 2, 3], 0, b"cells of three tokens")
LONGER = SavedPrefix(Owner(None), [1, 2, 3, 4], 3, b"one more")
OWN = SavedPrefix(Owner("user:alice"), [1, 2, 3, 9], 3, b"hers")


def open_folder(path: Path, *, fingerprint: str = "this", max_age_s: float = 60) -> PrefixFolder:
    return PrefixFolder(
        path / "prefixes" / "m", fingerprints={"": fingerprint}, max_age_s=max_age_s
    )


def files(path: Path) -> list[Path]:
    return sorted((path / "prefixes" / "m").iterdir())


def only_file(path: Path) -> Path:
    (file,) = files(path)
    return file


def test_what_was_written_is_read_after_what_it_builds_on(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    for prefix in (OWN, LONGER, PINNED):
        folder.write(prefix)
    again = open_folder(tmp_path)
    assert list(again.read(pinned=True)) == [PINNED, LONGER]
    assert list(again.read(pinned=False)) == [OWN]


def test_only_its_owner_may_look(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        open_folder(tmp_path).write(OWN)
    finally:
        os.umask(old)
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "prefixes").rglob("*")]
    assert modes == [0o700, 0o600]
    assert (tmp_path / "prefixes").stat().st_mode & 0o777 == 0o700


def test_what_this_process_checked_or_wrote_is_known(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    name = folder.name_of(Owner(None), PINNED.tokens, 0)
    assert not folder.has(name)
    folder.write(PINNED)
    assert folder.has(name)
    assert only_file(tmp_path).name == name
    folder.remove(Owner(None), PINNED.tokens, 0)
    assert not folder.has(name)
    assert files(tmp_path) == []


def test_nothing_but_what_is_named_stays(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.write(PINNED)
    folder.write(OWN)
    (tmp_path / "prefixes" / "m" / "notes.txt").write_text("not ours")
    folder.remove_others([folder.name_of(Owner(None), PINNED.tokens, 0)])
    assert [file.name.split("-")[0] for file in files(tmp_path)] == ["notes.txt", "pinned"]


def refused(path: Path, caplog: pytest.LogCaptureFixture, **settings: object) -> str:
    """Why the one file is not used. It is gone afterwards, and the line tells nothing of it."""
    with caplog.at_level(logging.WARNING):
        assert list(open_folder(path, **settings).read(pinned=True)) == []  # type: ignore[arg-type]
    assert files(path) == []
    (record,) = caplog.records
    assert "cells of" not in record.getMessage()
    return record.getMessage()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fingerprint": "other"}, "changed since"),
        ({"max_age_s": -1}, "old, which is more than allowed"),
    ],
)
def test_what_was_saved_by_another_or_long_ago_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, object], said: str
) -> None:
    open_folder(tmp_path).write(PINNED)
    assert said in refused(tmp_path, caplog, **settings)


@given(data=st.data())
def test_what_was_cut_or_altered_anywhere_is_not_used(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("prefixes")
    open_folder(path).write(PINNED)
    file = only_file(path)
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[place:]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    assert list(open_folder(path).read(pinned=True)) == []
    assert files(path) == []


def header(**values: int) -> bytes:
    return json.dumps({"fingerprint": "this", "adapter": "", **values}).encode()


@pytest.mark.parametrize(
    "written",
    [
        b"",
        b"[]",
        b"{}",
        b"nonsense",
        b"[" * 100_000,
        b"\xff",
        json.dumps(
            {"fingerprint": "this", "saved_at": 2**40, "start": 0, "num_tokens": 1}
        ).encode(),
        json.dumps({"fingerprint": "this", "saved_at": 1, "start": 0, "num_tokens": 99}).encode(),
        json.dumps({"fingerprint": "this", "saved_at": 1, "start": 0}).encode(),
    ],
)
def test_a_wrong_header_is_an_error_even_with_the_right_checksum(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, written: bytes
) -> None:
    open_folder(tmp_path).write(PINNED)
    file = only_file(tmp_path)
    magic = file.read_bytes().split(b"\n")[0] + b"\n"
    rewrite(file, magic + len(written).to_bytes(4, "big") + written + b"rest")
    refused(tmp_path, caplog, max_age_s=1e12)


def test_a_file_under_the_name_of_another_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = open_folder(tmp_path)
    folder.write(PINNED)
    only_file(tmp_path).rename(only_file(tmp_path).with_name("pinned-000000000-x.prefix"))
    assert "name" in refused(tmp_path, caplog)


@pytest.mark.parametrize("kind", ["link", "pipe", "open to others"])
def test_only_a_plain_file_of_our_own_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    open_folder(tmp_path).write(PINNED)
    file = only_file(tmp_path)
    if kind == "open to others":
        file.chmod(0o640)
    else:
        moved = file.rename(tmp_path / "moved")
        file.symlink_to(moved) if kind == "link" else os.mkfifo(file, 0o600)
    refused(tmp_path, caplog)


def test_what_was_being_written_when_a_worker_was_killed_goes(tmp_path: Path) -> None:
    open_folder(tmp_path).write(PINNED)
    file = only_file(tmp_path)
    file.with_name(file.name + ".unfinished").write_bytes(b"half")
    assert list(open_folder(tmp_path).read(pinned=True)) == [PINNED]
    assert files(tmp_path) == [file]


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    assert list(folder.read(pinned=True)) == []
    folder.remove_others([])
    assert not (tmp_path / "prefixes").exists()


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "prefixes").write_text("in the way")
    with pytest.raises(OSError, match="prefixes"):
        open_folder(tmp_path).write(PINNED)


def test_the_identity_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    first = tmp_path / "a.gguf"
    first.write_bytes(bytes(3 << 20))
    identity = file_identity(first)
    status = first.stat()
    for place in (0, (3 << 20) - 1):
        content = bytearray(3 << 20)
        content[place] = 1
        first.write_bytes(content)
        os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert file_identity(first) != identity


def test_the_identity_of_a_folder_is_that_of_what_a_model_is_read_from(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    identity = file_identity(tmp_path)
    (tmp_path / "README.md").write_text("read me")
    assert file_identity(tmp_path) == identity
    (tmp_path / "config.json").write_text("{ }")
    assert file_identity(tmp_path) != identity


def rewrite(file: Path, content: bytes) -> None:
    file.write_bytes(content + hashlib.sha256(content).digest())
