"""What the processes beside the daemon have in common: `openclawd-notify`, `-fetch`, `-metrics`.

Owns how they log, and how they find the socket that systemd passed. Knows nothing of the daemon.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_FIRST_PASSED_FD: Final = 3
"""SD_LISTEN_FDS_START of sd-daemon.h."""


def passed_descriptor(environ: Mapping[str, str]) -> int | None:
    """That of the one socket which systemd passed to this process (sd_listen_fds(3)); else None."""
    is_ours = environ.get("LISTEN_PID") == str(os.getpid()) and environ.get("LISTEN_FDS") == "1"
    return _FIRST_PASSED_FD if is_ours else None


def start_logging(program: str) -> None:
    """To standard error, as the journal reads it or with the program's name in front."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(program))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class _Formatter(logging.Formatter):
    """With the priorities of sd-daemon(3) where the journal reads them."""

    def __init__(self, program: str) -> None:
        super().__init__("%(message)s")
        self._program = program

    def format(self, record: logging.LogRecord) -> str:
        text = " ".join(super().format(record).splitlines())
        if "JOURNAL_STREAM" not in os.environ:
            return f"{self._program}: {text}"
        priority = 3 if record.levelno >= logging.ERROR else 4
        return f"<{priority if record.levelno >= logging.WARNING else 6}>{text}"
