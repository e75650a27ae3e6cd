"""What can be said about a GGUF file without an ML library: is it there, is it one, is it whole.

Owns the sentences for files that cannot be a model. Reads the fixed 24-byte header and nothing
else; the rest of a model file is hostile input and left to the library in the worker.

Source of the layout: llama.cpp, `ggml/include/gguf.h`.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import Final

from openclawd.backends.base import CannotLoad, unreadable

_HEADER: Final = struct.Struct("<4sIqq")  # magic, version, number of tensors, number of keys
_MAGIC: Final = b"GGUF"
_GET_ANOTHER: Final = "copy or download the file again and compare its checksum"


def check_gguf_file(path: str) -> None:
    """Raise `CannotLoad` with one sentence if this cannot be a whole GGUF model."""
    header = _read_header(path)
    if not header:
        raise _unusable(f"{path} is empty", _GET_ANOTHER)
    if header[: len(_MAGIC)] != _MAGIC:
        raise _unusable(
            f"{path} is not a GGUF file: it begins with {header[:4]!r}, not {_MAGIC!r}",
            "give the path of a .gguf file; safetensors models are served by the torch backend",
        )
    if len(header) < _HEADER.size:
        raise _unusable(f"{path} is cut off: it ends inside its header", _GET_ANOTHER)
    _check_header_fields(path, header)


def _check_header_fields(path: str, header: bytes) -> None:
    _, version, num_tensors, _ = _HEADER.unpack(header)
    if version & 0xFFFF == 0:  # a small number whose bytes are swapped
        raise _unusable(
            f"{path} was made for big-endian machines", "get the little-endian file of this model"
        )
    if num_tensors == 0:
        raise _unusable(
            f"{path} holds only a vocabulary, no weights", "give the file that holds the weights"
        )


def _read_header(path: str) -> bytes:
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise _unusable(f"{path} is not a regular file", "give the path of a .gguf file")
            return file.read(_HEADER.size)
    except FileNotFoundError:
        raise _unusable(
            f"{path} does not exist",
            "put it there, or correct its path in the configuration or --models",
        ) from None
    except IsADirectoryError:
        raise _unusable(
            f"{path} is a directory", "give the path of the .gguf file inside it"
        ) from None
    except PermissionError:
        raise _unusable(
            f"user {_user_name()} may not read {path}",
            f"check the file's mode and that of every directory above it: namei -l {path}",
        ) from None
    except OSError as error:
        raise unreadable(path, error) from None


def _open_without_waiting(path: str, flags: int) -> int:
    """A FIFO in the place of a model would hold up the open for ever."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _user_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _unusable(message: str, hint: str) -> CannotLoad:
    return CannotLoad(message, hint=hint, permanent=True)
