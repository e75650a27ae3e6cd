"""llama.cpp's computing parts, where they are libraries of their own.

A llama.cpp that was built for many machines (`GGML_BACKEND_DL`, `GGML_CPU_ALL_VARIANTS`: the Debian
package) comes with its CPU code several times, for different instruction sets, and computes nothing
before it is told where to look for them. One that was built for this machine has all in one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

import llama_cpp


def load_backends() -> None:
    """Have ggml load the best there is for this machine, unless it has its backends already."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    with contextlib.suppress(OSError):  # a llama.cpp from elsewhere sees to itself
        ggml = ctypes.CDLL(str(folder / "libggml.so"))
        ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
        if ggml.ggml_backend_dev_count() == 0:
            ggml.ggml_backend_load_all_from_path(os.fsencode(folder))
