"""A disk that takes nothing: new work is refused in plain words, and what was accepted is kept."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
from typing import TYPE_CHECKING

import pytest
from harness import Daemon, running_daemon, smollm2_path

from openclawctl import Client, OpenclawError
from openclawctl.wire.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROMPT = "The capital of France is"


@pytest.fixture
def disk(folder: Path) -> Iterator[Path]:
    """A file system of two MiB, for the state directory."""
    mount_point = folder / "state"
    mount_point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount_point)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield mount_point
    subprocess.run(["umount", str(mount_point)], check=True)


@contextlib.contextmanager
def daemon_with_a_budget(folder: Path) -> Iterator[Daemon]:
    config = folder / "c.yaml"
    config.write_text(
        f"models: {{m: {{path: {smollm2_path()}, preload: true}}}}\n"
        "budgets: [{name: all, tokens: 100000}]\n"
    )
    with running_daemon("--config", str(config), folder=folder) as daemon:
        yield daemon


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass


def used(client: Client) -> tuple[int, int]:
    """Tokens that the budget has as used, and as reserved."""
    (row,) = client.budgets()
    return row["tokens"]["used"], row["tokens"]["reserved"]


def rows(disk: Path) -> list[tuple[str, int]]:
    """How every request ended, and its tokens, in order."""
    with contextlib.closing(sqlite3.connect(disk / "ledger.sqlite3")) as database:
        return database.execute(
            "SELECT coalesce(error_code, finish_reason), prompt_tokens"
            " + coalesce(completion_tokens, 0) FROM requests ORDER BY seq"
        ).fetchall()


def refused_in_the_end(client: Client) -> tuple[int, Unavailable]:
    """Ask until the disk takes no more. Returns the tokens that were served until then."""
    tokens = 0
    while True:
        try:
            tokens += client.generate(PROMPT, max_tokens=1, ignore_eos=True).usage.total_tokens
        except Unavailable as refusal:
            return tokens, refusal


def test_a_full_disk_refuses_new_work_and_loses_nothing_that_was_accepted(
    folder: Path, disk: Path
) -> None:
    filler = disk / "filler"
    with daemon_with_a_budget(folder) as daemon:
        daemon.wait_ready()
        with Client(daemon.socket, retries=0) as client, Client(daemon.socket, retries=0) as other:
            with client.generate(PROMPT, max_tokens=1024, ignore_eos=True, stream=True) as stream:
                next(iter(stream))
                fill(filler)
                served, refusal = refused_in_the_end(other)
                assert "the ledger" in refusal.message
                assert "full" in refusal.message
                assert refusal.hint == "free some space on that file system"
                with pytest.raises(Unavailable):  # that one may have been computed, this is not
                    other.generate(PROMPT, max_tokens=1)
                with pytest.raises(Unavailable):
                    other.create_key("k", role="user")
                stream.cancel()
                with pytest.raises(Unavailable):  # computed, and not on disk
                    for _ in stream:
                        pass
            assert other.status()
            spent, reserved = used(other)
            assert spent > served
            assert reserved == 0
            filler.unlink()
            after = other.generate(PROMPT, max_tokens=3, ignore_eos=True).usage.total_tokens
            assert used(other) == (spent + after, 0)
            assert client.check_ledger()["findings"] == []
            assert [key["name"] for key in client.list_keys()] == []
        assert daemon.terminate() == 0

    found = rows(disk)
    assert found[0][0] == "cancelled"
    assert sum(tokens for _, tokens in found) == spent + after
    refused = [tokens for end, tokens in found if end == "unavailable"]
    assert refused, found
    assert set(refused) == {0}
    with daemon_with_a_budget(folder) as daemon, Client(daemon.wait_ready().socket) as client:
        assert used(client) == (spent + after, 0)
        assert client.audit_verify()["valid"]


def test_a_read_only_state_directory_is_named_and_left_as_it_was(folder: Path, disk: Path) -> None:
    with daemon_with_a_budget(folder) as daemon, Client(daemon.wait_ready().socket) as client:
        tokens = client.generate(PROMPT, max_tokens=3, ignore_eos=True).usage.total_tokens
        assert daemon.terminate() == 0
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with daemon_with_a_budget(folder) as daemon:
        assert daemon.process.wait(60) == 1
        last_line = daemon.log().splitlines()[-1]
        assert str(disk) in last_line
        assert "ead-only" in last_line
        with pytest.raises(OpenclawError), Client(daemon.socket, retries=0) as client:
            client.ping()
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    with daemon_with_a_budget(folder) as daemon, Client(daemon.wait_ready().socket) as client:
        assert used(client) == (tokens, 0)
