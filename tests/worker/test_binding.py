"""A worker binds itself to its CPUs while it has one thread, so none of it ever runs elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from openclawd.worker.messages import EXIT_LOAD_FAILED_FOR_NOW

IMPORTS = """
import os, sys
import openclawd.worker.__main__
heavy = {"numpy", "torch", "llama_cpp"} & set(sys.modules)
print(len(os.listdir("/proc/self/task")), sorted(heavy))
"""


def test_nothing_that_a_worker_imports_first_starts_a_thread() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, check=True)
    assert done.stdout == b"1 []\n"


@pytest.mark.parametrize("are_all_gone", [True, False])
def test_cpus_that_are_gone_by_now(are_all_gone: bool) -> None:
    cpus = "8000" if are_all_gone else f"{min(os.sched_getaffinity(0))},8000"
    command = [sys.executable, "-m", "openclawd.worker", "--fd", "0", "--cpus", cpus]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.returncode == EXIT_LOAD_FAILED_FOR_NOW
    assert f"it cannot be bound to the CPUs {cpus}" in done.stderr.decode()
