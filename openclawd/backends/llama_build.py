"""Which instruction sets the llama.cpp that is installed was built for."""

from __future__ import annotations

import re

import llama_cpp

from openclawd.backends.llama_libraries import load_backends


def features() -> list[str]:
    """ggml's names of them, such as AVX2: of the build that it chose for this machine if it has
    several, else of the only one."""
    load_backends()
    told = llama_cpp.llama_print_system_info().decode()
    return re.findall(r"(\w+) = 1\b", told)
