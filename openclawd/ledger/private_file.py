"""How a secret of the daemon gets into the state directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from openclawd.durable import sync_folder

if TYPE_CHECKING:
    from pathlib import Path


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, in place of any that is there. Durable when this
    returns, and never half there under its name. Blocks. Raises `OSError`."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(unfinished, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    sync_folder(path.parent)
