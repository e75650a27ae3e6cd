"""The worker's log: lines on stderr that begin with an sd-daemon(3) priority.

The daemon reads them from a pipe and gives them to its own log. No text of a prompt or a completion
is ever written, so nothing here takes a message of the pipe as an argument.
"""

from __future__ import annotations

import logging
import sys
from typing import Final

_PRIORITIES: Final = (
    (logging.ERROR, "<3>"),
    (logging.WARNING, "<4>"),
    (logging.INFO, "<6>"),
)
_DEBUG: Final = "<7>"


class _PriorityFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Every line gets the priority, those of a traceback included."""
        priority = next((text for level, text in _PRIORITIES if record.levelno >= level), _DEBUG)
        return "\n".join(priority + line for line in super().format(record).splitlines())


def start_logging() -> None:
    """Send this process's log to stderr. The daemon drops what is below its own level."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PriorityFormatter("%(message)s"))
    logging.basicConfig(level=logging.DEBUG, handlers=[handler])
