"""Which GPUs a configuration means, and how many bytes of them a worker may take."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawd.fleet.gpus import CONTEXT_BYTES, GpuReport, budgets, decode_report
from openclawd.observe.gpus import Gpu

GIB = 2**30


def gpu(index: int, uuid: str, *, free: int = 8 * GIB, is_slice: bool = False) -> Gpu:
    return Gpu(index, uuid, "card", memory_bytes=80 * GIB, used_bytes=80 * GIB - free,
               is_slice=is_slice)  # fmt: skip


REPORT = GpuReport((gpu(0, "GPU-aa1"), gpu(0, "MIG-77", is_slice=True), gpu(1, "GPU-aa2")))


@pytest.mark.parametrize(
    ("devices", "uuids", "missing"),
    [
        ([], ["GPU-aa1", "GPU-aa2"], []),
        (["1"], ["GPU-aa2"], []),
        (["MIG-7"], ["MIG-77"], []),
        (["GPU-aa2", "0"], ["GPU-aa2", "GPU-aa1"], []),
        (["GPU-aa", "5"], [], ["GPU-aa", "5"]),
    ],
)
def test_how_gpus_are_named(devices: list[str], uuids: list[str], missing: list[str]) -> None:
    found, absent = REPORT.find(devices)
    assert ([each.uuid for each in found], absent) == (uuids, missing)


def test_without_a_limit_a_worker_may_take_what_is_free() -> None:
    gpus = [gpu(0, "GPU-1", free=4 * GIB), gpu(1, "GPU-2", free=CONTEXT_BYTES // 2)]
    assert budgets(gpus, None) == [4 * GIB - CONTEXT_BYTES, 0]


def test_a_limit_is_shared_by_what_is_free() -> None:
    gpus = [gpu(0, "GPU-1", free=12 * GIB), gpu(1, "GPU-2", free=4 * GIB)]
    assert budgets(gpus, 8 * GIB) == [6 * GIB - CONTEXT_BYTES, 2 * GIB - CONTEXT_BYTES]


@given(st.lists(st.integers(0, 80 * GIB), max_size=8), st.none() | st.integers(0, 700 * GIB))
def test_budgets_never_exceed_what_there_is(free: list[int], limit: int | None) -> None:
    given_out = budgets([gpu(i, f"GPU-{i}", free=each) for i, each in enumerate(free)], limit)
    assert all(0 <= got <= each for got, each in zip(given_out, free, strict=True))
    assert limit is None or sum(given_out) <= limit


def test_a_report_is_read() -> None:
    row = {"index": 0, "uuid": "GPU-1", "name": "n", "memory_bytes": 10, "used_bytes": 4}
    line = json.dumps({"driver": "550", "gpus": [row], "processes": {"7": 4}})
    report = decode_report(line.encode())
    assert (report.gpus[0].free_bytes, report.memory_of(7), report.memory_of(8)) == (6, 4, None)
    assert report.row()["gpu_problem"] == ""
    assert decode_report(b'{"gpus": []}').problem == "the driver has no GPU"


@pytest.mark.parametrize("line", [b"", b"[]", b"x", b'{"gpus": [{}]}', b'{"gpus": [1]}',
                                  b'{"processes": 3}', b'{"processes": {"x": 1}}'])  # fmt: skip
def test_what_is_no_report(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_report(line)
