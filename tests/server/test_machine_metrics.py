"""What a scrape says of memory, a CPU quota, and GPUs, where they can be read."""

from __future__ import annotations

from openclawd.observe.exposition import Exposition
from openclawd.observe.gpus import Gpu
from openclawd.observe.pressure import ControlGroup, Pressure
from openclawd.server import machine_metrics


def written(group, gpus):
    text = Exposition()
    machine_metrics.write(text, Pressure(group, warn_share=0.9), gpus)
    lines = text.encode().decode().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_gpus_that_somebody_can_read():
    gpus = [
        Gpu(0, "GPU-0", "H200", memory_bytes=10, used_bytes=5, busy=0.25),
        Gpu(0, "MIG-1", "H200 1g", memory_bytes=2, used_bytes=1, is_slice=True),
    ]
    found = written(ControlGroup(None), gpus)
    assert [line for line in found if "gpu" in line] == [
        'openclawd_gpu_memory_used_bytes{gpu="0",name="H200"} 5',
        'openclawd_gpu_memory_used_bytes{gpu="MIG-1",name="H200 1g"} 1',
        'openclawd_gpu_memory_total_bytes{gpu="0",name="H200"} 10',
        'openclawd_gpu_memory_total_bytes{gpu="MIG-1",name="H200 1g"} 2',
        'openclawd_gpu_utilization_ratio{gpu="0",name="H200"} 0.25',
    ]


def test_the_own_limit_where_it_is_tighter(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    (tmp_path / "cpu.stat").write_text("throttled_usec 2500000\n")
    assert written(ControlGroup(tmp_path), []) == [
        "openclawd_memory_available_bytes 600",
        "openclawd_memory_limit_bytes 1000",
        "openclawd_cpu_throttled_seconds_total 2.5",
    ]
