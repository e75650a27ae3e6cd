"""Long waits where the machine is quiet, short ones where others are busy."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import llama_cpp  # noqa: F401 - loads OpenMP, as in a worker
import psutil
import pytest
from harness import wait_until

from openclawd.backends import llama_waits
from openclawd.backends.llama_waits import CROWDED_SHARE, QUIET_SHARE, Waits, _OthersWatch


def num_threads() -> int:
    return psutil.Process().num_threads()


def test_where_others_are_busy_there_are_more_threads_than_cores_until_it_is_quiet() -> None:
    before = num_threads()
    waits = Waits(2)
    assert waits.are_short, "who is beside a new worker is not known yet"
    waits.follow(QUIET_SHARE / 2)
    assert not waits.are_short
    waits.follow(CROWDED_SHARE + 0.01)
    assert waits.are_short
    assert num_threads() > before + len(os.sched_getaffinity(0))
    waits.follow((CROWDED_SHARE + QUIET_SHARE) / 2)
    assert waits.are_short  # it does not go to and fro
    waits.follow(QUIET_SHARE / 2)
    assert not waits.are_short
    wait_until(lambda: num_threads() == before, what="the end of the additional threads")


@pytest.mark.parametrize(
    ("load", "are_short"),
    [("0.1 0.1 0.1 1/70 99\n", False), ("0.1 0.1 0.1 2/70 99\n", True), ("", True), (None, True)],
)
def test_a_worker_that_is_alone_waits_long_from_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: str | None, are_short: bool
) -> None:
    monkeypatch.setattr(llama_waits, "_LOAD", tmp_path / "loadavg")
    if load is not None:
        (tmp_path / "loadavg").write_text(load)
    waits = Waits(2)
    waits.adapt()
    assert waits.are_short is are_short
    waits.close()


def test_closing_leaves_no_thread_behind() -> None:
    waits = Waits(2)
    waits.follow(1.0)
    waits.close()
    assert "crowd" not in {thread.name for thread in threading.enumerate()}


def test_what_another_process_uses_is_seen_and_what_this_one_uses_is_not() -> None:
    cores = {min(os.sched_getaffinity(0))}
    watch = _OthersWatch(cores)
    spin = f"import os; os.sched_setaffinity(0, {cores})\nwhile True: pass"
    other = subprocess.Popen([sys.executable, "-c", spin])
    try:
        wait_until(lambda: psutil.Process(other.pid).cpu_times().user > 0.3, what="a busy process")
        busy = watch.share()
    finally:
        other.kill()
        other.wait()
    assert busy > 0.2
    assert Path("/proc/stat").exists()
