"""Which backend serves a model, imported when it is wanted.

Owns the choice and the sentences for a library that is not installed. Each worker imports one ML
library and no other.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from openclawd.backends.base import CannotLoad
from openclawd.backends.safetensors_folder import check_folder

if TYPE_CHECKING:
    from openclawd.backends.base import Load


def load_of(backend: str, path: str) -> Load:
    """How to load what is at `path` with `backend`: llama, torch, or auto, which is torch for a
    folder. Raises `CannotLoad`."""
    if backend == "auto":
        backend = "torch" if os.path.isdir(path) else "llama"
    return _torch(path) if backend == "torch" else _llama()


def _llama() -> Load:
    try:
        from openclawd.backends import llama
    except (ImportError, OSError, RuntimeError) as error:
        raise CannotLoad(
            f"llama-cpp-python cannot be imported: {error}",
            hint="install it with: pip install 'openclawd[daemon]'",
            permanent=True,
        ) from None
    return llama.load


def _torch(path: str) -> Load:
    check_folder(path)  # importing torch takes seconds, which a wrong path need not wait for
    try:
        from openclawd.backends import pytorch
    except (ImportError, OSError, RuntimeError) as error:
        raise CannotLoad(
            f"torch or transformers cannot be imported: {error}",
            hint="install them with: pip install 'openclawd[torch]'",
            permanent=True,
        ) from None
    return pytorch.load
