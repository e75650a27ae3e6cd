"""`python -m openclawd.worker.gpus`: says what NVIDIA's driver knows of the GPUs, as lines of JSON.

A process of its own, because the driver's library is native code that can hang or crash. The only
place that imports nvidia-ml-py. A line is written at the start, every few seconds, and whenever a
byte comes on standard input; the process ends with its standard input.

A line has `driver`, `gpus` and `processes` (bytes of GPU memory by pid), or `problem`: why there
are none. A figure that a card or its driver does not give is null.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_READ_BYTES: Final = 64


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m openclawd.worker.gpus", allow_abbrev=False)
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS")
    every_s = parser.parse_args().every
    has_ended = False
    while not has_ended:
        sys.stdout.write(json.dumps(read_gpus()) + "\n")
        sys.stdout.flush()
        has_ended = _pause(every_s)
    return 0


def _pause(timeout_s: float) -> bool:
    """Until it is time for another line. True: nobody wants one any more."""
    readable, _, _ = select.select([0], [], [], timeout_s)
    return bool(readable) and not os.read(0, _READ_BYTES)


def read_gpus() -> dict[str, Any]:
    """One line's content. The driver may come while we wait for it, so it is asked anew."""
    try:
        import pynvml
    except ImportError:
        return {"problem": "the Python package nvidia-ml-py is not installed"}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return {"problem": f"NVIDIA's driver does not answer: {error}"}
    try:
        cards = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
        return {
            "driver": _text(pynvml.nvmlSystemGetDriverVersion()),
            "gpus": [row for index, card in enumerate(cards) for row in _rows(pynvml, index, card)],
            "processes": dict(_processes(pynvml, cards)),
        }
    except pynvml.NVMLError as error:
        return {"problem": f"NVIDIA's driver does not say what it has: {error}"}
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _rows(nvml: Any, index: int, card: Any) -> Iterator[dict[str, Any]]:
    """A card, and its MIG slices after it."""
    row = {**_device(nvml, card), "index": index, "node": _node(nvml, card)}
    busy = _known(nvml, nvml.nvmlDeviceGetUtilizationRates, card)
    power_mw = _known(nvml, nvml.nvmlDeviceGetPowerUsage, card)
    row["busy"] = busy and busy.gpu / 100
    row["power_w"] = power_mw and power_mw / 1000
    row["celsius"] = _known(nvml, nvml.nvmlDeviceGetTemperature, card, nvml.NVML_TEMPERATURE_GPU)
    yield row
    for number in range(_known(nvml, nvml.nvmlDeviceGetMaxMigDeviceCount, card) or 0):
        part = _known(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, card, number)
        if part is not None:
            yield {**_device(nvml, part), "index": index, "node": row["node"], "is_slice": True}


def _device(nvml: Any, handle: Any) -> dict[str, Any]:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return {
        "uuid": _text(nvml.nvmlDeviceGetUUID(handle)),
        "name": _text(_known(nvml, nvml.nvmlDeviceGetName, handle) or ""),
        "memory_bytes": int(memory.total),
        "used_bytes": int(memory.used),
    }


def _node(nvml: Any, card: Any) -> int | None:
    """The NUMA node that the card is attached to; the kernel says -1 where there is but one."""
    place = _known(nvml, nvml.nvmlDeviceGetPciInfo, card)
    if place is None:
        return None
    # The kernel writes the domain with four digits, NVML with eight.
    name = _text(place.busId).lower()[-12:]
    with contextlib.suppress(OSError, ValueError), open(_NODE_FILE.format(name)) as file:
        return max(int(file.read()), 0)
    return None


_NODE_FILE: Final = "/sys/bus/pci/devices/{}/numa_node"


def _processes(nvml: Any, cards: list[Any]) -> Iterator[tuple[int, int]]:
    used: dict[int, int] = {}
    for card in cards:
        for process in _known(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, card) or ():
            used[process.pid] = used.get(process.pid, 0) + (process.usedGpuMemory or 0)
    yield from used.items()


def _known(nvml: Any, ask: Callable[..., Any], *arguments: Any) -> Any:
    """None where the card or its driver does not have it."""
    try:
        return ask(*arguments)
    except nvml.NVMLError:
        return None


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


if __name__ == "__main__":
    sys.exit(main())
