"""Whose weights are mapped, and whose are in huge pages: a real daemon, real workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness import running_daemon, short_folder

from openclawctl import Client
from openclawd.fleet.host_memory import has_huge_pages, read_kib_fields

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Daemon
    from models.library import ModelLibrary

SMALL = {"parallel": 2, "context": 256, "keep_alive": "forever"}


@pytest.fixture(scope="module")
def daemon(models: ModelLibrary, model_path: Path) -> Iterator[Daemon]:
    configured: dict[str, Any] = {
        "alone": {"path": str(model_path)},
        "one": {"path": str(models.tiny("full"))},
        "other": {"path": str(models.tiny("full"))},
        "several": {"path": str(models.tiny("window")), "workers": 2},
        "told": {"path": str(models.tiny("recurrent")), "options": {"mmap": True}},
    }
    with short_folder() as folder:
        config = folder / "c.json"
        config.write_text(json.dumps({"models": {n: m | SMALL for n, m in configured.items()}}))
        with running_daemon("--config", str(config), folder=folder) as daemon:
            yield daemon.wait_ready()


def _is_mapped(client: Client, name: str) -> bool:
    return any(part["is_mapped"] for part in client.show(name)["memory"]["parts"])


def test_weights_are_mapped_where_several_have_them(daemon: Daemon) -> None:
    with Client(daemon.socket) as client:
        mapped = {
            name
            for name in ("one", "other", "several", "told", "alone")
            if _is_mapped(client, name)
        }
    expected = {"one", "other", "several", "told"}
    assert mapped == (expected if has_huge_pages() else expected | {"alone"})


@pytest.mark.skipif(not has_huge_pages(), reason="the kernel gives no transparent huge pages")
def test_weights_of_one_worker_are_in_huge_pages(daemon: Daemon, model_path: Path) -> None:
    with Client(daemon.socket) as client:
        client.generate("x", model="alone", max_tokens=1)
        (pid,) = (row["worker_pid"] for row in client.models() if row["name"] == "alone")
    pages = read_kib_fields(Path(f"/proc/{pid}/smaps_rollup"))
    assert pages["AnonHugePages"] > model_path.stat().st_size / 2
