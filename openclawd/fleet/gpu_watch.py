"""The way from the daemon to the process that reads the GPUs (`openclawd.worker.gpus`).

Owns when it runs: where NVIDIA's driver seems to be, or a model wants a GPU; elsewhere nothing is
started. What is read is `gpus.py`'s. Nothing here waits for the driver: a reader that does not
answer is killed, and that is what the next report says.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from openclawd.fleet.changes import Changes
from openclawd.fleet.gpus import GpuReport, decode_report
from openclawd.fleet.process import worker_environment
from openclawd.observe.logs import log_bug

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

INTERVAL_S: Final = 5.0
SILENCE_S: Final = 30.0
"""A reader that says nothing for so long hangs in the driver. The first call of a driver that wakes
its cards takes some seconds each."""

LOOK_S: Final = 10.0
"""How long somebody who needs a new report waits for it."""

_END_S: Final = 1.0
_RESTART_S: Final = 30.0
_LINE_BYTES: Final = 1024 * 1024

_NVIDIA: Final = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg")
"""Each is there once the driver is loaded; the last one under WSL 2."""

_AMD: Final = "/dev/kfd"
"""A GPU that NVIDIA's library knows nothing of, and llama.cpp may."""


class GpuWatch:
    """The last report. `run()` is the one task, owned by the fleet."""

    def __init__(self, *, interval_s: float = INTERVAL_S, silence_s: float = SILENCE_S) -> None:
        self._interval_s = interval_s
        self._silence_s = silence_s
        self.report = GpuReport(problem="NVIDIA's driver is not loaded")
        self._is_wanted = asyncio.Event()
        self._changes = Changes()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def is_other_kind_likely(self) -> bool:
        return Path(_AMD).exists()

    @property
    def is_any_likely(self) -> bool:
        """Does this machine seem to have a driver, whether or not its GPUs were seen?"""
        return _is_driver_likely() or self.is_other_kind_likely

    async def run(self) -> None:
        """Read for ever; from the start where there seems to be a driver."""
        if _is_driver_likely():
            self._is_wanted.set()
        while True:
            await self._is_wanted.wait()
            try:
                await self._read()
            except OSError as error:
                self._take(GpuReport(problem=f"the GPUs cannot be looked at: {error.strerror}"))
            except Exception:  # models on CPUs go on, and so do workers that have their GPUs
                log_bug(logger, "looking at the GPUs failed on a bug")
                self._take(GpuReport(problem="the daemon failed on a bug; its log has the story"))
            await asyncio.sleep(_RESTART_S)

    async def look(self) -> GpuReport:
        """A new report, or the last one should the driver take its time."""
        self._is_wanted.set()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(b"\n")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await self._changes.wait()
        return self.report

    async def wait_for(self, is_enough: Callable[[GpuReport], bool], timeout_s: float) -> None:
        """Until a report is what somebody waits for, at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not is_enough(self.report):
                    await self._changes.wait()

    async def _read(self) -> None:
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-P", "-m", "openclawd.worker.gpus", "--every", str(self._interval_s)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES,
            env=worker_environment(os.environ),
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            problem = await self._read_lines(process.stdout)
        finally:
            self._process = None
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            # One that hangs in the driver is not gone before the driver lets it go.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_S):
                    await process.communicate()
        self._take(GpuReport(problem=problem))

    async def _read_lines(self, lines: asyncio.StreamReader) -> str:
        """Take reports until something is wrong; what that is."""
        try:
            while True:
                async with asyncio.timeout(self._silence_s):
                    line = await lines.readline()
                if not line:
                    return "the process that looks at the GPUs has died"
                self._take(decode_report(line))
        except TimeoutError:
            return f"NVIDIA's driver has not answered for {self._silence_s:g} s"
        except ValueError as error:
            return f"what was read of the GPUs makes no sense: {error}"

    def _take(self, report: GpuReport) -> None:
        if report.problem != self.report.problem:
            logger.log(
                logging.WARNING if report.problem else logging.INFO,
                "GPUs: %s",
                report.problem or ", ".join(gpu.name for gpu in report.gpus),
            )
        self.report = report
        self._changes.tell()


def _is_driver_likely() -> bool:
    return any(Path(path).exists() for path in _NVIDIA)
