"""Memory that is nearly used up and a CPU that is held back, said in the log before anything fails.

Reads what the kernel says of the machine and of the daemon's control group (cgroups(7), version 2),
which has the workers in it. Every file is the kernel's, so reading one waits for no disk.

A warning is given once when a limit is reached, and its end once it is well below again.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from openclawctl.wire.units import format_size
from openclawd.observe import message_ids
from openclawd.observe.logs import fields

if TYPE_CHECKING:
    from collections.abc import Iterable

    from openclawd.observe.gpus import Gpu

CLEARED_BELOW: Final = 0.05
"""How far under its limit a share has to be before the next warning: nothing that goes to and fro
fills the log."""

MAX_THROTTLED_SHARE: Final = 0.1
"""Of the time. A quota that holds the workers back for a tenth of it is felt in every stream."""

_CGROUPS: Final = Path("/sys/fs/cgroup")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Memory:
    """What there is, and how much of it can still be had without anybody being killed."""

    whose: str
    available_bytes: int
    limit_bytes: int

    @property
    def used_share(self) -> float:
        return 1 - self.available_bytes / max(1, self.limit_bytes)


class ControlGroup:
    """The group of this process. What cannot be read is not there."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    @classmethod
    def own(cls) -> ControlGroup:
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/cgroup").read_text().splitlines():
                if line.startswith("0::/"):
                    return cls(_CGROUPS / line.removeprefix("0::/"))
        return cls(None)

    def memory(self) -> Memory | None:
        """None without a limit. Pages of files, such as a mapped model's, that are not in use can
        be had again, and do not count as used."""
        limit = self._number("memory.max")
        current = self._number("memory.current")
        if limit is None or current is None:
            return None
        used = current - self._entry("memory.stat", "inactive_file")
        return Memory("the service's control group", max(0, limit - used), limit)

    def throttled_s(self) -> float | None:
        """How long its processes were held back by a CPU quota, all together."""
        microseconds = self._entry("cpu.stat", "throttled_usec", default=-1)
        return None if microseconds < 0 else microseconds / 1e6

    def _number(self, name: str) -> int | None:
        """None, too, for `max`."""
        text = self._read(name).strip()
        return int(text) if text.isdecimal() else None

    def _entry(self, name: str, key: str, *, default: int = 0) -> int:
        for line in self._read(name).splitlines():
            found, _, value = line.partition(" ")
            if found == key and value.isdecimal():
                return int(value)
        return default

    def _read(self, name: str) -> str:
        with contextlib.suppress(OSError):
            if self._folder is not None:
                return (self._folder / name).read_text()
        return ""


def machine_memory() -> Memory | None:
    """None where /proc shows processes alone (`ProcSubset=pid`)."""
    with contextlib.suppress(OSError, psutil.Error):
        memory = psutil.virtual_memory()
        return Memory("the machine", memory.available, memory.total)
    return None


class Pressure:
    """Looks and warns. `warn_share` is the used share of memory or VRAM that is too much."""

    def __init__(self, group: ControlGroup, *, warn_share: float) -> None:
        self.group = group
        self._warn_share = warn_share
        self._raised: set[str] = set()
        self._throttled_s = group.throttled_s() or 0.0

    def memory(self) -> Memory | None:
        """The tighter one of the machine's and the control group's; None if neither can be read."""
        both = [machine_memory(), self.group.memory()]
        known = [each for each in both if each is not None]
        return min(known, key=lambda each: each.available_bytes, default=None)

    def look(self, gpus: Iterable[Gpu], *, elapsed_s: float) -> None:
        """Warn of what has become too much since the last look, `elapsed_s` ago."""
        if (memory := self.memory()) is not None:
            self._look_at_memory(memory)
        for gpu in gpus:
            self._look_at_gpu(gpu)
        self._look_at_cpu(elapsed_s)

    def _look_at_memory(self, memory: Memory) -> None:
        sentence = (
            f"the memory of {memory.whose} is nearly used up: {format_size(memory.available_bytes)}"
            f" of {format_size(memory.limit_bytes)} are left"
        )
        if self._is_new(f"memory of {memory.whose}", memory.used_share, self._warn_share):
            logger.warning(
                "%s; unload a model (`openclawctl ps`), or lower `parallel` or `context` of one",
                sentence,
                extra=fields(
                    message_id=message_ids.MEMORY_LOW,
                    available_bytes=memory.available_bytes,
                    limit_bytes=memory.limit_bytes,
                ),
            )

    def _look_at_gpu(self, gpu: Gpu) -> None:
        if self._is_new(f"memory of GPU {gpu.label}", gpu.memory_share, self._warn_share):
            logger.warning(
                "the memory of GPU %s (%s) is nearly used up: %s of %s are in use; unload a model"
                " (`openclawctl ps`), or lower `gpu_layers`, `parallel` or `context` of one",
                gpu.label,
                gpu.name,
                format_size(gpu.used_bytes),
                format_size(gpu.memory_bytes),
                extra=fields(
                    message_id=message_ids.VRAM_LOW,
                    gpu=gpu.label,
                    used_bytes=gpu.used_bytes,
                    limit_bytes=gpu.memory_bytes,
                ),
            )

    def _look_at_cpu(self, elapsed_s: float) -> None:
        throttled_s = self.group.throttled_s()
        if throttled_s is None:
            return
        share = (throttled_s - self._throttled_s) / max(elapsed_s, 1e-3)
        self._throttled_s = throttled_s
        if self._is_new("CPU quota", share, MAX_THROTTLED_SHARE):
            logger.warning(
                "the CPU quota of the service holds it back: its processes waited %.0f %% of the"
                " last %.0f s; raise CPUQuota= in the unit, or lower `threads` of the models",
                share * 100,
                elapsed_s,
                extra=fields(message_id=message_ids.CPU_THROTTLED, throttled_share=share),
            )

    def _is_new(self, what: str, share: float, limit: float) -> bool:
        """Has a share reached its limit, after it was well below?"""
        if share >= limit:
            is_new = what not in self._raised
            self._raised.add(what)
            return is_new
        if what in self._raised and share < limit - CLEARED_BELOW:
            self._raised.discard(what)
            logger.info("%s: enough again", what)
        return False
