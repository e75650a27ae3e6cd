"""What llama.cpp says: warnings and errors go to stderr, its chatter goes nowhere.

Owns the process-wide log callback. Lines begin with the sd-daemon(3) priority that the daemon turns
into its own levels. The last errors are kept, because llama.cpp reports why a load failed only
here.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections import deque
from typing import Final

import llama_cpp

# enum ggml_log_level, ggml.h
_INFO: Final = 2
_WARN: Final = 3
_ERROR: Final = 4
_CONTINUED: Final = 5

_PREFIXES: Final = {_WARN: "<4>", _ERROR: "<3>"}
_NUM_KEPT: Final = 16

_NOT_NEWS: Final = (
    "possible training context overflow",  # compares the whole cache with one sequence's length
    "default pooling_type is",  # this one context averages by itself, see llama.py
    "failed to find a memory slot",  # an ordinary result of a full cache; the engine handles it
    "failed to prepare attention ubatches",  # the same, from a hybrid model
    "cannot use buft",  # an adapter's tensors are not repacked; one line for each
)


class _Log:
    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=_NUM_KEPT)
        self._level = _INFO
        self._line = ""

    def receive(self, level: int, text: bytes | None, user_data: object) -> None:
        """The callback. May come from any thread; the GIL serialises it."""
        del user_data
        if level != _CONTINUED:
            self._level, self._line = level, ""
        self._line += (text or b"").decode("utf-8", "replace")
        if self._line.endswith("\n"):
            line, self._line = self._line.strip(), ""
            self._write(line)

    def _write(self, line: str) -> None:
        prefix = _PREFIXES.get(self._level)
        if prefix is None or not line or any(part in line for part in _NOT_NEWS):
            return
        if self._level == _ERROR:
            self.errors.append(line)
        sys.stderr.write(f"{prefix}llama.cpp: {line}\n")
        sys.stderr.flush()


_LOG: Final = _Log()
_CALLBACK: Final = llama_cpp.llama_log_callback(_LOG.receive)
"""llama.cpp keeps only a pointer to it: were this garbage collected, the next line would crash."""


def install() -> None:
    """Take over llama.cpp's log for this process."""
    llama_cpp.llama_log_set(_CALLBACK, ctypes.c_void_p(0))


def reason(errors: list[str]) -> str:
    """The most telling line: the first one, without the name of the C function that said it."""
    if not errors:
        return "it gave no reason"
    return re.sub(r"^\w+: (error loading model: |failed to apply lora adapter: )?", "", errors[0])


def take_errors() -> list[str]:
    """The last errors, oldest first; they are forgotten."""
    errors = list(_LOG.errors)
    _LOG.errors.clear()
    return errors
