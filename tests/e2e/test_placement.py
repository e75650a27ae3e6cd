"""Which CPUs workers run on, seen from /proc while they compute; and what a machine cannot give."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import running_daemon, smollm2_path, wait_until

from openclawctl import BusyProblem, Client, FailedProblem

if TYPE_CHECKING:
    from models.library import ModelLibrary

CPUS = sorted(os.sched_getaffinity(0))
needs_two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="needs two CPUs")
SMALL = "parallel: 2, context: 256, prefill_aside: false"


@pytest.fixture
def tiny(models: ModelLibrary) -> Path:
    return models.tiny("full")


def start(folder: Path, text: str, path: Path) -> tuple[str, str]:
    file = folder / "c.yaml"
    file.write_text(text.replace("MODEL", f"path: {path}, {SMALL}"))
    return "--config", str(file)


def threads(pid: int) -> set[tuple[str, int]]:
    """Where each thread of a process may run, and where it ran last (proc(5), stat field 39)."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            status = (task / "status").read_text()
            last = (task / "stat").read_text().rpartition(")")[2].split()[36]
        except OSError:  # it has just ended
            continue
        allowed = status.partition("Cpus_allowed_list:\t")[2].partition("\n")[0]
        found.add((allowed, int(last)))
    return found


@needs_two_cpus
def test_two_models_never_run_on_each_others_core(folder: Path) -> None:
    """Acceptance: one by name, one by `cpu_cores_per_worker`, both computing all the while."""
    first, second = CPUS[:2]
    options = start(
        folder,
        f"models:\n  a: {{MODEL, preload: true, cpus: {second}}}\n"
        "  b: {MODEL, preload: true}\n"
        "resource_limits: {cpu_cores_per_worker: 1}\n",
        smollm2_path(),
    )
    with running_daemon(*options, folder=folder) as daemon:
        daemon.wait_ready()
        with Client(daemon.socket) as client, Client(daemon.socket) as other:
            workers = {row["name"]: row["worker_pid"] for row in client.models()}
            seen: dict[str, set[tuple[str, int]]] = {"a": set(), "b": set()}
            busy = threading.Thread(
                target=lambda: other.generate("Once", model="b", max_tokens=60, ignore_eos=True)
            )
            busy.start()
            for _ in client.generate("One", model="a", max_tokens=60, ignore_eos=True, stream=True):
                for name, pid in workers.items():
                    seen[name] |= threads(pid)
            busy.join()
            rows = {row["name"]: row for row in client.models()}
        assert seen["a"] == {(str(second), second)}
        (own,) = {int(allowed) for allowed, _ in seen["b"]}
        assert own != second
        assert seen["b"] == {(str(own), own)}
        assert {name: row["workers"][0]["cpus"] for name, row in rows.items()} == {
            "a": str(second),
            "b": str(own),
        }
        assert {row["info"]["threads"] for row in rows.values()} == {1}
        assert own == first or len(CPUS) > 2


@needs_two_cpus
def test_who_has_no_cpus_of_its_own_keeps_off_those_of_others(folder: Path, tiny: Path) -> None:
    text = f"models:\n  a: {{MODEL, cpus: {CPUS[0]}}}\n  b: {{MODEL}}\n"
    options = start(folder, text, tiny)
    with running_daemon(*options, folder=folder) as daemon:
        daemon.wait_ready()
        with Client(daemon.socket) as client:
            client.load("b")
            (pid,) = [row["worker_pid"] for row in client.models() if row["name"] == "b"]
            allowed = os.sched_getaffinity(pid)
    assert allowed == set(CPUS[1:])


def test_a_model_for_which_no_cpu_is_free_says_so(folder: Path, tiny: Path) -> None:
    options = start(
        folder,
        "models:\n  a: {MODEL, preload: true}\n  b: {MODEL}\n"
        f"resource_limits: {{cpu_cores_per_worker: {len(CPUS)}}}\n",
        tiny,
    )
    with running_daemon(*options, folder=folder) as daemon:
        daemon.wait_ready()
        with Client(daemon.socket, retries=0) as client:
            with pytest.raises(
                BusyProblem, match=rf"it is to have {len(CPUS)} of the CPUs .* to a"
            ):
                client.load("b")
            client.unload("a")
            assert client.load("b")["state"] == "ready"


def test_cpus_that_the_machine_does_not_have(folder: Path, tiny: Path) -> None:
    options = start(folder, "models: {a: {MODEL, cpus: 8000}}", tiny)
    with (
        running_daemon(*options, folder=folder) as daemon,
        Client(daemon.wait_ready().socket, retries=0) as client,
        pytest.raises(FailedProblem, match="its `cpus` name 8000, but the daemon may use"),
    ):
        client.load("a")


def test_a_model_whose_gpu_is_not_there_is_computed_on_the_cpu_and_says_so(
    folder: Path, tiny: Path
) -> None:
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("there is a GPU")
    options = start(
        folder,
        "models:\n  a: {MODEL, devices: [0]}\n  b: {MODEL, gpu_layers: 9, without_gpu: fail}\n"
        "resource_limits: {gpu_wait: 0s}\n",
        tiny,
    )
    with running_daemon(*options, folder=folder) as daemon:
        daemon.wait_ready()
        with Client(daemon.socket, retries=0) as client:
            client.load("a")
            row, _ = client.models()
            assert (row["state"], row["info"]["gpu_layers"]) == ("ready", 0)
            assert row["reason"].startswith("on the CPU: there is no GPU (NVIDIA's driver")
            with pytest.raises(BusyProblem, match=r"there is no GPU .*and without_gpu is fail"):
                client.load("b")
            status = client.status()
        assert status["gpus"] == []
        assert "NVML Shared Library Not Found" in status["gpu_problem"]
        wait_until(
            lambda: "though its configuration wants a GPU" in daemon.log(), what="the warning"
        )
