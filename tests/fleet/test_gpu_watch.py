"""The process that reads the GPUs, with a library that stands in for NVIDIA's, and the decision
what a worker gets of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
from fleet.placers import placer

from openclawd.fleet.gpu_watch import GpuWatch
from openclawd.fleet.gpus import GpuWish
from openclawd.fleet.placement import NoPlace
from openclawd.fleet.placer import GpuPlace
from openclawd.worker.messages import Load

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from openclawd.worker.messages import Loading

Result = TypeVar("Result")

GIB = 2**30
WANTED = GpuWish(devices=("GPU-0000b",))


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libnvidia-ml.so.1."""
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("nvml.c")
    target = folder / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", target, source], check=True)
    return folder


@pytest.fixture
def driver(nvml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose text says what the driver does: yes, none or hang."""
    file = tmp_path / "driver"
    file.write_text("yes")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml))
    monkeypatch.setenv("FAKE_NVML", str(file))
    return file


def run(use: Callable[[GpuWatch], Awaitable[Result]], *, silence_s: float = 30.0) -> Result:
    async def main() -> Result:
        watch = GpuWatch(interval_s=0.05, silence_s=silence_s)
        task = asyncio.create_task(watch.run())
        try:
            return await use(watch)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    return asyncio.run(main())


def ignore(progress: Loading) -> None:
    del progress


def test_what_the_driver_says_is_read(driver: Path) -> None:
    report = run(lambda watch: watch.look())
    assert [(gpu.index, gpu.uuid, gpu.is_slice, gpu.busy) for gpu in report.gpus] == [
        (0, "GPU-0000aaaa", False, 0.25),
        (0, "MIG-0000cccc", True, None),
        (1, "GPU-0000bbbb", False, None),
    ]
    assert (report.driver, report.problem, report.memory_of(42)) == ("550.1", "", GIB)


def test_no_driver_is_said_and_is_no_error(driver: Path) -> None:
    driver.write_text("none")
    report = run(lambda watch: watch.look())
    assert report.problem == "NVIDIA's driver does not answer: Driver Not Loaded"


def test_no_library_is_said_and_is_no_error() -> None:
    report = run(lambda watch: watch.look())
    if not report.gpus:
        assert "NVML Shared Library Not Found" in report.problem


def test_a_driver_that_hangs_is_left_alone(driver: Path) -> None:
    driver.write_text("hang")
    report = run(lambda watch: watch.look(), silence_s=0.3)
    assert report.problem == "NVIDIA's driver has not answered for 0.3 s"


def test_nothing_is_imported_or_started_where_nobody_wants_a_gpu(driver: Path) -> None:
    async def place(watch: GpuWatch) -> GpuPlace:
        place = await placer(watch).place_on_gpu("m", GpuWish(), ignore)
        assert watch._process is None
        return place

    if not os.path.exists("/dev/nvidiactl"):
        assert run(place) == GpuPlace()


def test_a_gpu_that_is_there_is_used_within_its_budget(driver: Path) -> None:
    place = run(lambda watch: placer(watch, limit=4 * GIB).place_on_gpu("m", WANTED, ignore))
    assert place == GpuPlace(devices=("GPU-0000b",), budgets=(4 * GIB - 512 * 2**20,))


def test_a_driver_that_comes_late_is_waited_for(driver: Path) -> None:
    driver.write_text("none")
    phases = []

    def note(progress: Loading) -> None:
        phases.append(progress.phase)
        driver.write_text("yes")

    place = run(lambda watch: placer(watch, wait_s=30).place_on_gpu("m", WANTED, note))
    assert (place.devices, place.notice) == (("GPU-0000b",), "")
    assert set(phases) == {"waiting for a GPU"}


def test_a_gpu_that_does_not_come(driver: Path, caplog: pytest.LogCaptureFixture) -> None:
    driver.write_text("none")
    place = run(lambda watch: placer(watch, wait_s=0.3).place_on_gpu("model m", WANTED, ignore))
    story = "there is no GPU (NVIDIA's driver does not answer: Driver Not Loaded)"
    assert place == GpuPlace(devices=None, notice=f"on the CPU: {story}")
    assert f"model m is computed on the CPU, though its configuration wants a GPU: {story}" in (
        caplog.text
    )
    load = Load("m", "/m", parallel=1, context=64, kv_tokens=64, batch_tokens=64, gpu_layers=None)
    assert place.applied_to(load, WANTED).gpu_layers == 0


def test_a_model_may_fail_instead(driver: Path) -> None:
    wish = GpuWish(devices=("7",), fails_without=True)
    with pytest.raises(NoPlace, match=r"no GPU 7; there are: 0 \(GPU-0000aaaa\), .*is fail") as no:
        run(lambda watch: placer(watch, wait_s=0.3).place_on_gpu("m", wish, ignore))
    assert not no.value.is_permanent


def test_a_model_without_gpu_layers_sees_none(driver: Path) -> None:
    place = run(lambda watch: placer(watch).place_on_gpu("m", GpuWish(gpu_layers=0), ignore))
    assert place == GpuPlace(devices=None)


def test_a_reader_ends_with_its_daemon(driver: Path) -> None:
    command = [sys.executable, "-m", "openclawd.worker.gpus", "--every", "600"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert b"GPU-0000aaaa" in reader.stdout.readline()
        assert reader.stdin is not None
        reader.stdin.close()
        assert reader.wait(10) == 0
