"""Whose weights are mapped, and whose are in huge pages: a real daemon, real workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness import running_daemon, wait_until

from openclawctl import Client
from openclawd.fleet.host_memory import has_huge_pages, read_kib_fields

if TYPE_CHECKING:
    from models.library import ModelLibrary

SMALL = {"parallel": 2, "context": 256, "keep_alive": "forever"}

needs_huge_pages = pytest.mark.skipif(
    not has_huge_pages(), reason="the kernel gives no transparent huge pages"
)


def write(folder: Path, models: dict[str, Any], **limits: Any) -> Path:
    config = folder / "c.json"
    configured = {name: {**SMALL, **model} for name, model in models.items()}
    config.write_text(json.dumps({"models": configured, "resource_limits": limits}))
    return config


def mapped(client: Client) -> set[str]:
    """The models of which something is mapped."""
    names = {row["name"] for row in client.models()}
    parts = {name: client.show(name)["memory"]["parts"] for name in names}
    return {name for name in names if any(part["is_mapped"] for part in parts[name])}


def huge_bytes(client: Client, name: str) -> int:
    (pid,) = (row["worker_pid"] for row in client.models() if row["name"] == name)
    return read_kib_fields(Path(f"/proc/{pid}/smaps_rollup"))["AnonHugePages"]


@needs_huge_pages
def test_weights_are_mapped_where_several_have_them(
    folder: Path, models: ModelLibrary, model_path: Path
) -> None:
    link = folder / "link.gguf"
    link.symlink_to(models.tiny("full"))
    draft = {"method": "draft", "draft_model": str(models.tiny_draft())}
    configured: dict[str, Any] = {
        "alone": {"path": str(model_path)},
        "one": {"path": str(models.tiny("full"))},
        "other": {"path": str(link)},
        "several": {"path": str(models.tiny("window")), "workers": 2},
        "told": {"path": str(models.tiny("recurrent")), "options": {"mmap": True}},
        "drafted": {"path": str(models.tiny("hybrid")), "speculation": draft},
        "draft": {"path": str(models.tiny_draft())},
    }
    config = write(folder, configured)
    with (
        running_daemon("--config", str(config), folder=folder) as daemon,
        Client(daemon.wait_ready().socket) as client,
    ):
        assert mapped(client) == set(configured) - {"alone"}


def test_weights_are_mapped_where_two_copies_have_no_room(folder: Path, model_path: Path) -> None:
    config = write(folder, {"alone": {"path": str(model_path)}}, memory="180MiB")
    with (
        running_daemon("--config", str(config), folder=folder) as daemon,
        Client(daemon.wait_ready().socket) as client,
    ):
        assert mapped(client) == {"alone"}


@needs_huge_pages
def test_weights_of_one_worker_are_in_huge_pages_until_another_has_them(
    folder: Path, model_path: Path
) -> None:
    alone = {"alone": {"path": str(model_path)}}
    config = write(folder, alone)
    with (
        running_daemon("--config", str(config), folder=folder) as daemon,
        Client(daemon.wait_ready().socket) as client,
    ):
        before = client.generate("Once", model="alone", max_tokens=4, temperature=0)
        assert mapped(client) == set()
        assert huge_bytes(client, "alone") > model_path.stat().st_size
        write(folder, alone | {"second": {"path": str(model_path)}})
        client.reload()
        after = client.generate("Once", model="alone", max_tokens=4, temperature=0)
        assert after.text == before.text
        wait_until(lambda: mapped(client) == {"alone", "second"}, what="the other worker")
