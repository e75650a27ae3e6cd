"""What may be fetched at all, by its name and by its first bytes. Pure.

Weights that are pickles run code when they are read, so they are refused, and Python files too.
"""

from __future__ import annotations

import re
import struct
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from openclawctl.wire.errors import InvalidRequest, Unavailable, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterable

GGUF: Final = ".gguf"
SAFETENSORS: Final = ".safetensors"
HEAD_BYTES: Final = 9

_PICKLES: Final = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5"})
_BESIDE_WEIGHTS: Final = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken"})
"""What a model of the torch backend reads beside its weights: settings, tokenizers, templates."""

_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}")
_MAX_DEPTH: Final = 4
_MAX_SAFETENSORS_HEADER: Final = 100_000_000
"""The format's own limit (safetensors, README, "Format")."""

_GGUF_VERSIONS: Final = range(1, 100)
"""One in the wrong byte order is far above."""


def check_path(path: str) -> str:
    """A file's path in a repository, if it can be one in a folder of ours. Raises
    `Unsupported`."""
    parts = path.split("/")
    if len(parts) > _MAX_DEPTH or not all(map(_PART.fullmatch, parts)):
        raise Unsupported(f"the file name {path[:200]!r} is not one that is written to disk here")
    return path


def check_kind(path: str) -> None:
    """Raise `Unsupported` for what is neither GGUF nor safetensors."""
    suffix = PurePosixPath(path).suffix.lower()
    if suffix in (GGUF, SAFETENSORS):
        return
    if suffix in _PICKLES:
        raise Unsupported(
            f"{path} is a pickle or like one, which runs code when it is read",
            hint="look for the same model as GGUF or safetensors; or convert it, on a machine that "
            "may be lost, with transformers' save_pretrained(safe_serialization=True)",
        )
    raise Unsupported(f"{path} is neither a GGUF nor a safetensors file")


def is_beside_weights(path: str) -> bool:
    """Does a safetensors model need it, as far as its name says?"""
    return PurePosixPath(path).suffix.lower() in _BESIDE_WEIGHTS


def has_pickles(paths: Iterable[str]) -> bool:
    return any(PurePosixPath(path).suffix.lower() in _PICKLES for path in paths)


def check_head(path: str, head: bytes, size: int) -> None:
    """Raise `Unavailable` if a file does not begin as its name says. `head` are its first
    `HEAD_BYTES`."""
    suffix = PurePosixPath(path).suffix.lower()
    if suffix == GGUF and not _is_gguf(head):
        raise _not_what(path, "GGUF", head)
    if suffix == SAFETENSORS and not _is_safetensors(head, size):
        raise _not_what(path, "safetensors", head)


def _is_gguf(head: bytes) -> bool:
    return head[:4] == b"GGUF" and int.from_bytes(head[4:8], "little") in _GGUF_VERSIONS


def _is_safetensors(head: bytes, size: int) -> bool:
    if len(head) < HEAD_BYTES:
        return False
    length = struct.unpack("<Q", head[:8])[0]
    return head[8:9] == b"{" and length <= min(size - 8, _MAX_SAFETENSORS_HEADER)


def _not_what(path: str, kind: str, head: bytes) -> Unavailable:
    return Unavailable(
        f"what was sent as {path} is no {kind} file: it begins with {head[:4]!r}",
        hint="the server may have sent a page of its own; open the address in a browser",
    )


def name_from(path: str) -> str:
    """A model's name for a file or repository. Raises `InvalidRequest`."""
    name = PurePosixPath(path).name
    stem = name.removesuffix(GGUF)
    if not _PART.fullmatch(stem):
        raise InvalidRequest(
            f"{name[:200]!r} cannot be a model's name", hint="give one with --name"
        )
    return stem
