"""Keeping an API key inside this process while it holds one.

Only the command line does this: a library must not change the process of the program that uses it.
"""

from __future__ import annotations

import os
from typing import Final

from openclawctl.wire.errors import OpenclawError

_PR_SET_DUMPABLE: Final = 4
"""linux/include/uapi/linux/prctl.h"""


def keep_memory_private() -> None:
    """From here on no core file, and nobody but root may look into this process (`prctl(2)`,
    `core(5)`)."""
    import ctypes  # here: commands without a key do not pay for it
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


class SecretFile:
    """A new file of mode 0600 for a secret. It is made before the secret is asked for, so that a
    key is never made that cannot be kept, and removed again when there is none."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = -1
        self._is_written = False

    def __enter__(self) -> SecretFile:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._descriptor = os.open(self.path, flags, 0o600)
        except FileExistsError:
            raise OpenclawError(
                f"{self.path} exists already", hint="name a new file, or move that one away"
            ) from None
        except OSError as error:
            raise OpenclawError(f"cannot make {self.path}: {error.strerror}") from None
        return self

    def write(self, secret: str) -> None:
        """Raises `OpenclawError` when it cannot be kept."""
        try:
            os.write(self._descriptor, f"{secret}\n".encode())
            os.fsync(self._descriptor)
        except OSError as error:
            raise OpenclawError(
                f"cannot write {self.path}: {error.strerror}",
                hint="the key is made, but nobody has it: `openclawctl keys rotate` makes another",
            ) from None
        self._is_written = True

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        if not self._is_written:
            os.unlink(self.path)
