"""Memory that is nearly used up, GPU memory as well, and a CPU that is held back."""

from __future__ import annotations

import logging

import pytest

from openclawd.observe import message_ids, pressure
from openclawd.observe.gpus import Gpu
from openclawd.observe.pressure import ControlGroup, Pressure

GIB = 2**30


@pytest.fixture
def group(tmp_path):
    """A control group whose files a test writes."""

    def write(**files):
        for name, text in files.items():
            (tmp_path / name.replace("_", ".", 1)).write_text(text)
        return ControlGroup(tmp_path)

    return write


def gpu(share):
    return Gpu(0, "GPU-0", "H200", memory_bytes=100 * GIB, used_bytes=int(share * 100 * GIB))


def ids(caplog):
    fields = [getattr(record, "fields", {}) for record in caplog.records]
    return [each["message_id"] for each in fields if "message_id" in each]


def test_a_group_without_a_limit_says_nothing(group):
    assert group(memory_max="max\n", memory_current="5\n").memory() is None
    assert ControlGroup(None).memory() is None
    assert ControlGroup(None).throttled_s() is None


def test_pages_of_files_that_nobody_uses_do_not_count(group):
    memory = group(
        memory_max=f"{4 * GIB}\n",
        memory_current=f"{3 * GIB}\n",
        memory_stat=f"anon 5\ninactive_file {GIB}\n",
    ).memory()
    assert (memory.available_bytes, memory.limit_bytes) == (2 * GIB, 4 * GIB)
    assert memory.used_share == 0.5


def test_the_own_group_can_be_looked_at():
    ControlGroup.own().memory()  # whatever there is here: nothing raises


def test_memory_is_warned_of_once_until_it_is_well_again(group, caplog):
    caplog.set_level(logging.INFO)
    full = {"memory_max": str(1000), "memory_stat": "inactive_file 0\n"}
    pressure = Pressure(group(**full, memory_current="950"), warn_share=0.9)
    for current in ("950", "950", "880", "950", "800", "950"):
        group(memory_current=current)
        pressure.look([], elapsed_s=10)
    assert ids(caplog) == [message_ids.MEMORY_LOW] * 2
    assert "the service's control group" in caplog.text
    assert "unload a model" in caplog.text


def test_memory_of_a_gpu(caplog):
    pressure = Pressure(ControlGroup(None), warn_share=0.9)
    for share in (0.5, 0.95, 0.96):
        pressure.look([gpu(share)], elapsed_s=10)
    assert ids(caplog) == [message_ids.VRAM_LOW]
    assert "GPU 0 (H200)" in caplog.text


def test_a_cpu_quota_that_holds_the_service_back(group, caplog):
    pressure = Pressure(group(cpu_stat="nr_throttled 0\nthrottled_usec 0\n"), warn_share=1)
    for microseconds in (100_000, 3_100_000, 6_100_000):
        group(cpu_stat=f"nr_throttled 5\nthrottled_usec {microseconds}\n")
        pressure.look([], elapsed_s=10)
    assert ids(caplog) == [message_ids.CPU_THROTTLED]
    assert "30 % of the last 10 s" in caplog.text


def test_a_machine_that_cannot_be_looked_at(monkeypatch):
    def hidden():
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(pressure.psutil, "virtual_memory", hidden)
    watch = Pressure(ControlGroup(None), warn_share=0.9)
    assert watch.memory() is None
    watch.look([], elapsed_s=10)
