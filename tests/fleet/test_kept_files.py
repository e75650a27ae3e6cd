"""Saved prefixes that no worker will come for are removed when the daemon starts."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

import pytest

from openclawd.config import ModelConfig
from openclawd.fleet.kept_files import sweep

if TYPE_CHECKING:
    from pathlib import Path

DAY_S = 86_400


def put(prefix_dir: Path, name: str, *, age_s: float = 0) -> Path:
    path = prefix_dir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def model(**values: object) -> ModelConfig:
    return ModelConfig.model_validate({"path": "m.gguf", **values})


def test_only_what_a_configured_model_may_still_use_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stays = [
        put(tmp_path, "kept/new.prefix", age_s=29 * DAY_S),
        put(tmp_path, "kept/notes.txt", age_s=99 * DAY_S),
        put(tmp_path, "kept+1/of-its-second-worker.prefix"),
    ]
    for name in ("kept/old.prefix", "kept/x.prefix.unfinished"):
        put(tmp_path, name, age_s=31 * DAY_S)
    for name in ("off/a.prefix", "gone/a.prefix", "gone/b.prefix"):
        put(tmp_path, name)
    with caplog.at_level(logging.INFO):
        sweep(tmp_path, {"kept": model(), "off": model(persist_prefixes="off")})
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(stays)
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "kept+1"}
    assert "2 saved prefixes of model gone are removed" in caplog.messages


def test_a_daemon_that_never_kept_any_has_no_such_folder(tmp_path: Path) -> None:
    sweep(tmp_path / "prefixes", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_folder_of_ours_is_left_alone(tmp_path: Path, kind: str) -> None:
    elsewhere = put(tmp_path, "elsewhere/a.prefix")
    place = tmp_path / "prefixes"
    place.mkdir()
    if kind == "file":
        (place / "m").write_text("")
    else:
        (place / "m").symlink_to(elsewhere.parent)
    sweep(place, {})
    assert elsewhere.exists()
    assert (place / "m").exists()


def test_what_cannot_be_removed_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "m" / "a.prefix").mkdir(parents=True)
    sweep(tmp_path, {})
    assert "may be left" in caplog.text
