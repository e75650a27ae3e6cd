"""Fixtures for every test: a warm daemon, daemons of one's own, and the check for leaks."""

from __future__ import annotations

import gc
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from harness import Daemon, running_daemon, short_folder, smollm2_argument, smollm2_path
from models.library import ModelLibrary

if TYPE_CHECKING:
    from collections.abc import Iterator


# A job that a shell runs in the background ignores SIGINT, and so would every program under test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def model_path() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file."""
    return smollm2_path()


@pytest.fixture(scope="session")
def models() -> Iterator[ModelLibrary]:
    """Models that are made for the tests: one of each memory kind, drafts, adapters."""
    with short_folder() as folder:
        yield ModelLibrary(folder)


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    """One warm daemon with SmolLM2, shared by all tests that leave it as they found it."""
    with running_daemon(*smollm2_argument()) as running:
        yield running.wait_ready()


@pytest.fixture
def own_daemon() -> Iterator[Daemon]:
    """A warm daemon with SmolLM2 that the test may break."""
    with running_daemon(*smollm2_argument()) as running:
        yield running.wait_ready()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A temporary directory with a short path, for sockets."""
    with short_folder() as path:
        yield path


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves a child process, a descriptor or a thread behind."""
    before = _open_things()
    yield
    if left := _open_things() - before:
        gc.collect()  # what only the garbage holds is no leak
        left = _open_things() - before
    assert not left, f"the test left behind: {sorted(left)}"


def _open_things() -> set[str]:
    descriptors = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            descriptors.add(f"descriptor {name} -> {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            continue  # the listing's own descriptor
    children = {f"child {pid}" for pid in _children()}
    threads = {f"thread {thread.name}" for thread in threading.enumerate()}
    return descriptors | children | threads


def _children() -> set[int]:
    """From the kernel, where it tells (CONFIG_PROC_CHILDREN): to look at every process of the
    machine instead takes some milliseconds, twice for each of thousands of tests."""
    found: set[int] = set()
    for thread in os.listdir("/proc/self/task"):
        try:
            found.update(map(int, Path(f"/proc/self/task/{thread}/children").read_text().split()))
        except ProcessLookupError:
            continue  # the thread has ended
        except FileNotFoundError:
            return {child.pid for child in psutil.Process().children()}
    return found
