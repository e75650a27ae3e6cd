"""The CPU, the GPUs and the memory, by what the kernel shows of them under `root`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Final

from openclawctl.wire.units import format_size
from openclawd.doctor.findings import Finding, State
from openclawd.fleet.host_memory import read_kib_fields
from openclawd.observe.cpu import cpu_flags

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MIN_AVAILABLE: Final = 0.05
"""The share of the memory below which the kernel soon ends a process."""

_BUILD_TIMEOUT_S: Final = 60.0
_ITS_VARIABLES: Final = ("PATH", "PYTHONPATH", "LANG", "LC_ALL")

_CPU_FLAGS: Final = {
    "SSSE3": "ssse3",
    "AVX": "avx",
    "F16C": "f16c",
    "FMA": "fma",
    "AVX2": "avx2",
    "BMI2": "bmi2",
    "AVX_VNNI": "avx_vnni",
    "AVX512": "avx512f",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
}
"""ggml's names of instruction sets (ggml-cpu.cpp, `ggml_backend_cpu_get_features`), and those of
/proc/cpuinfo."""

_NVIDIA: Final = "0x10de"
_DISPLAY_CLASS: Final = "0x03"  # PCI: display controllers
_LLAMA: Final = "llama-cpp-python"


class BuildUnknown(Exception):
    """llama.cpp could not be asked what it was built for; says why."""


def read_build() -> frozenset[str]:
    """Which instruction sets the installed llama.cpp uses, by ggml's names.

    Asks a process of its own, since a library that was built for another machine ends it. Raises
    `BuildUnknown`.
    """
    try:
        asked = subprocess.run(
            [sys.executable, "-P", "-m", "openclawd.worker.builds"],
            env={name: os.environ[name] for name in _ITS_VARIABLES if name in os.environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_BUILD_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildUnknown(f"llama.cpp could not be asked what it was built for: {error}") from None
    if asked.returncode < 0:
        raise BuildUnknown(f"llama.cpp dies of {signal.Signals(-asked.returncode).name}")
    if asked.returncode != 0:
        last = asked.stderr.strip().splitlines()[-1:]
        raise BuildUnknown(f"llama.cpp cannot be loaded: {''.join(last) or 'it says nothing'}")
    return frozenset(asked.stdout.split())


def check_cpu(root: Path, build: frozenset[str] | BuildUnknown) -> Finding:
    """Does llama.cpp fit the CPU? `build` is what `read_build` says."""
    if isinstance(build, BuildUnknown):
        return Finding("cpu", State.FAILED, str(build), _rebuild())
    flags = cpu_flags(root / "proc" / "cpuinfo")
    if not flags:
        return Finding("cpu", State.OK, "llama.cpp loads; what this CPU can do is not known")
    beyond = [name for name in sorted(build) if _CPU_FLAGS.get(name, "") not in ("", *flags)]
    if beyond:
        names = ", ".join(beyond)
        message = f"llama.cpp was built for {names}, which this CPU does not have: workers die"
        return Finding("cpu", State.FAILED, f"{message} of SIGILL", _rebuild())
    if "avx2" in flags and "AVX2" not in build:
        message = "llama.cpp was built without AVX2, which this CPU has: answers come several times"
        return Finding("cpu", State.WARNING, f"{message} slower than they could", _rebuild())
    best = next((name for name in ("AVX512", "AVX2", "AVX") if name in build), "plain x86-64")
    return Finding("cpu", State.OK, f"llama.cpp fits this CPU ({best})")


def _rebuild() -> str:
    """With the version that is installed: the batch loop fits no other."""
    try:
        wanted = f"{_LLAMA}=={metadata.version(_LLAMA)}"
    except metadata.PackageNotFoundError:
        wanted = "'openclawd[cpu]'"
    return (
        "build it on this machine: `pip install --force-reinstall --no-cache-dir --no-binary"
        f" {_LLAMA} {wanted}`; the Debian package has builds for every machine"
    )


def check_gpu(root: Path) -> Finding:
    """Can a worker of this user get at the NVIDIA cards there are?"""
    driver = root / "proc" / "driver" / "nvidia"
    num_cards = _num_nvidia_cards(root / "sys" / "bus" / "pci" / "devices")
    if not (driver / "version").exists():
        if not num_cards:
            return Finding("gpu", State.OK, "no NVIDIA card: models run on the CPU")
        message = f"{_cards(num_cards)}, but its driver is not loaded: models run on the CPU"
        remedy = "install the driver (Debian: nvidia-driver) and load it: `modprobe nvidia`"
        return Finding("gpu", State.WARNING, message, remedy)
    nodes = [root / "dev" / name for name in _nodes_of(driver)]
    missing = [f"/{node.relative_to(root)}" for node in nodes if not node.exists()]
    if missing:
        message = f"the NVIDIA driver is loaded, but {', '.join(missing)} is not there"
        remedy = "make the device nodes: `nvidia-modprobe -c 0 -u`, or start nvidia-persistenced"
        return Finding("gpu", State.FAILED, message, f"{remedy}; then restart openclawd")
    closed = [f"/{n.relative_to(root)}" for n in nodes if not os.access(n, os.R_OK | os.W_OK)]
    if closed:
        message = f"openclawd's user may not use {', '.join(closed)}"
        remedy = (
            "put it into the group of these nodes (`ls -l /dev/nvidia*`), and restart openclawd"
        )
        return Finding("gpu", State.FAILED, message, remedy)
    return Finding("gpu", State.OK, f"{_cards(num_cards)} with its driver and device nodes")


def _cards(number: int) -> str:
    return "an NVIDIA card" if number == 1 else f"{number} NVIDIA cards"


def _num_nvidia_cards(devices: Path) -> int:
    return sum(
        _text(device / "vendor") == _NVIDIA and _text(device / "class").startswith(_DISPLAY_CLASS)
        for device in devices.glob("*")
    )


def _nodes_of(driver: Path) -> list[str]:
    """What CUDA opens: the control node, unified memory, and one node for each card."""
    minors = []
    for information in sorted((driver / "gpus").glob("*/information")):
        for line in _text(information).splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "Device Minor":
                minors.append(value.strip())
    return ["nvidiactl", "nvidia-uvm", *(f"nvidia{minor}" for minor in minors)]


def _text(file: Path) -> str:
    with contextlib.suppress(OSError):
        return file.read_text(errors="replace").strip()
    return ""


def check_memory(root: Path, weights_bytes: Mapping[str, int]) -> Finding:
    """`weights_bytes` of models by name."""
    memory = read_kib_fields(root / "proc" / "meminfo")
    total, available = memory.get("MemTotal", 0), memory.get("MemAvailable", 0)
    if not total:
        return Finding("memory", State.UNKNOWN, "/proc/meminfo cannot be read")
    sizes = f"{format_size(available)} of {format_size(total)} can be had"
    too_large = [name for name, size in weights_bytes.items() if size > total]
    if too_large:
        name = too_large[0]
        message = f"{sizes}; the weights of {name} alone are {format_size(weights_bytes[name])}"
        remedy = f"put {name} on a GPU, or take a smaller quantisation (`openclawctl show {name}`)"
        return Finding("memory", State.WARNING, message, remedy)
    if available < total * MIN_AVAILABLE:
        remedy = (
            "end what takes it (`ps aux --sort=-rss | head`), or unload models (`openclawctl ps`)"
        )
        return Finding("memory", State.WARNING, f"{sizes}: it is nearly used up", remedy)
    return Finding("memory", State.OK, sizes)
