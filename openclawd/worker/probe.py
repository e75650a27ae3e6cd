"""`python -m openclawd.worker.probe PATH`: what the files of a model say of its size.

A process of its own that ends at once, since the files are hostile: the daemon parses none. Says
one JSON object on its standard output: facts (`facts.py`), or `error` with `hint` and `permanent`.
It loads no ML library and reads no weight. The kernel ends it should a file keep it busy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import sys
from typing import Any, Final

from openclawd.backends.base import CannotLoad
from openclawd.worker.folder_shape import folder_facts, is_model_folder
from openclawd.worker.gguf_shape import gguf_facts

CPU_S: Final = 20
"""SmolLM2's header, with 49,152 tokens, takes a tenth of a second; the largest vocabularies have
six times as many."""

MEMORY_BYTES: Final = 2 * 2**30
"""Address space for a folder's files: a safetensors header has 100 MB at most, and some
times that as objects."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m openclawd.worker.probe", allow_abbrev=False)
    parser.add_argument("path")
    path = parser.parse_args().path
    json.dump(_answer(path), sys.stdout)


def _answer(path: str) -> dict[str, Any]:
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        if not is_model_folder(path):  # it is mapped whole, which counts as address space
            return gguf_facts(path).encode()
        with contextlib.suppress(ValueError):  # a lower hard limit is as good
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        return folder_facts(path).encode()
    except CannotLoad as problem:
        return {"error": str(problem), "hint": problem.hint, "permanent": problem.permanent}


if __name__ == "__main__":
    main()
