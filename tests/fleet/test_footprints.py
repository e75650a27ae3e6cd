"""What models took is kept for the next time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from openclawd.fleet.footprints import MAX_ENTRIES, Footprints, fingerprint
from openclawd.worker.messages import Load

if TYPE_CHECKING:
    from pathlib import Path

LOAD = Load("m", "/m.gguf", parallel=4, context=1024, kv_tokens=4096, batch_tokens=512)


def test_the_most_is_kept_and_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "footprints.json"
    footprints = Footprints(path)
    assert footprints.note("k", own_bytes=5, pss_bytes=9, is_used=False)
    assert not footprints.note("k", own_bytes=4, pss_bytes=8, is_used=False)
    assert footprints.note("k", own_bytes=4, pss_bytes=8, is_used=True)
    footprints.write(footprints.snapshot())
    assert path.stat().st_mode & 0o777 == 0o600
    known = Footprints(path).find("k")
    assert known is not None
    assert (known.own_bytes, known.pss_bytes, known.is_used) == (5, 9, True)


@pytest.mark.parametrize("text", ["", "[]", '{"k": {}}', '{"k": 3}', "{" * 9000])
def test_a_damaged_file_is_begun_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "footprints.json"
    path.write_text(text)
    assert Footprints(path).find("k") is None


def test_there_are_never_too_many(tmp_path: Path) -> None:
    footprints = Footprints(tmp_path / "f")
    for number in range(MAX_ENTRIES + 5):
        footprints.note(str(number), own_bytes=1, pss_bytes=1, is_used=True)
    assert len(footprints.snapshot()) == MAX_ENTRIES


def test_a_folder_that_cannot_be_written_is_no_failure() -> None:
    footprints = Footprints(None)
    footprints.note("k", own_bytes=1, pss_bytes=1, is_used=True)
    footprints.write(footprints.snapshot())


def test_what_makes_a_difference_to_memory_is_another_load() -> None:
    own = fingerprint(LOAD, (1,), "1.0")
    assert own == fingerprint(replace(LOAD, name="other", prefix_folder="/p"), (1,), "1.0")
    assert own != fingerprint(replace(LOAD, context=2048), (1,), "1.0")
    assert own != fingerprint(LOAD, (2,), "1.0")
    assert own != fingerprint(LOAD, (1,), "1.1")
