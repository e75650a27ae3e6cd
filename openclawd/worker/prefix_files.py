"""Kept prefixes on disk: one file each, in a folder that is the model's own.

Owns the format and the folder. Nothing of a file is believed before its checksum was, and nothing
of it is used unless it says that model, settings and library are the ones of this worker: what is
cut, altered, too old or another's is removed, with a line in the log that never has text of it.
Knows no backend; what the cells look like is its.

A file is `_MAGIC`, the length of the header (uint32, big-endian), the header (JSON), the tokens
(uint32, little-endian), the cells, and the SHA-256 of all that. Its name says whether it is pinned
and where it starts, so that in the order of the names each comes after what it builds on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from openclawctl.wire.fields import Fields
from openclawctl.wire.units import format_duration
from openclawd.durable import sync_folder
from openclawd.engine.prefixes import Owner

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

_MAGIC: Final = b"openclawd kept prefix 1\n"
_HASH_BYTES: Final = 32
_PINNED: Final = "pinned"
_SHARED: Final = "shared"
_SUFFIX: Final = ".prefix"
_UNFINISHED: Final = ".unfinished"
_END_BYTES: Final = 1024 * 1024
"""How much of each end of the model's file goes into its fingerprint: a GGUF file begins with its
metadata and ends with weights."""

_FILES_OF_A_FOLDER: Final = (".json", ".safetensors")

_LENGTH: Final = struct.Struct(">I")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SavedPrefix:
    """`tokens`, and the cells of those from `start` on."""

    owner: Owner
    tokens: list[int]
    start: int
    cells: bytes


class _Unusable(Exception):
    """Why a file is not used."""


class PrefixFolder:
    """The files of one model. `fingerprints`: everything on which its cells depend, by the name of
    the adapter they were computed with.

    Invariant: `_good` are the names of files that were checked or written by this process.
    """

    def __init__(self, path: Path, *, fingerprints: Mapping[str, str], max_age_s: float) -> None:
        self._path = path
        self._fingerprints = fingerprints
        self._max_age_s = max_age_s
        self._good: set[str] = set()

    def name_of(self, owner: Owner, tokens: Collection[int], start: int) -> str:
        """The file of a prefix. Tells nobody what is in it who does not know that already."""
        digest = hashlib.sha256(repr((self._fingerprints[owner.adapter], *owner, start)).encode())
        digest.update(_packed(tokens))
        return f"{_kind(owner)}-{start:09d}-{digest.hexdigest()[:_HASH_BYTES]}{_SUFFIX}"

    def has(self, name: str) -> bool:
        return name in self._good

    def read(self, *, pinned: bool) -> Iterator[SavedPrefix]:
        """Those that can be used, each after what it builds on. Blocks on the disk."""
        kind = _PINNED if pinned else _SHARED
        for name in self._names():
            if not name.startswith(kind):
                continue
            try:
                prefix = self._read(name)
            except (_Unusable, OSError) as error:
                _log.warning("saved prefix %s is removed: %s", self._path / name, error)
                self._remove(name)
                continue
            self._good.add(name)
            yield prefix

    def write(self, prefix: SavedPrefix) -> None:
        """Blocks until it is on the disk. Raises `OSError`; then there is no such file."""
        name = self.name_of(prefix.owner, prefix.tokens, prefix.start)
        header = json.dumps(
            {
                "fingerprint": self._fingerprints[prefix.owner.adapter],
                "domain": prefix.owner.domain,
                "adapter": prefix.owner.adapter,
                "start": prefix.start,
                "num_tokens": len(prefix.tokens),
                "saved_at": int(time.time()),
            }
        ).encode()
        length, tokens = _LENGTH.pack(len(header)), _packed(prefix.tokens)
        parts = (_MAGIC, length, header, tokens, prefix.cells)
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        self._write(name, (*parts, digest.digest()))
        self._good.add(name)

    def remove(self, owner: Owner, tokens: Collection[int], start: int) -> None:
        self._remove(self.name_of(owner, tokens, start))

    def remove_others(self, names: Collection[str]) -> None:
        """Every file of ours but these."""
        for name in self._names():
            if name not in names:
                self._remove(name)

    def _remove(self, name: str) -> None:
        self._good.discard(name)
        try:
            (self._path / name).unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s cannot be removed: %s", self._path / name, error)

    # ---- one file ----

    def _read(self, name: str) -> SavedPrefix:
        """Raises `_Unusable` and `OSError`."""
        content = _read_own_file(self._path / name)
        if not content.startswith(_MAGIC):
            raise _Unusable("it is none of this version")
        data = memoryview(content)  # large: not to be copied often
        if hashlib.sha256(data[:-_HASH_BYTES]).digest() != data[-_HASH_BYTES:]:
            raise _Unusable("its checksum is wrong: it was cut off or altered")
        prefix = self._parse(data[len(_MAGIC) : -_HASH_BYTES])
        if name != self.name_of(prefix.owner, prefix.tokens, prefix.start):
            raise _Unusable("its name is another's")
        return prefix

    def _parse(self, data: memoryview) -> SavedPrefix:
        """What is between the magic and the checksum. Raises `_Unusable`."""
        try:
            (length,) = _LENGTH.unpack_from(data)
            values = json.loads(bytes(data[_LENGTH.size : _LENGTH.size + length]))
        except (struct.error, ValueError, RecursionError) as error:
            raise _Unusable(f"its header is wrong: {error}") from None
        header = Fields({}, where="its header", error=_Unusable).nested(values, "its header")
        self._check(header)
        tokens_at = _LENGTH.size + length
        cells_at = tokens_at + 4 * header.integer("num_tokens", low=1, high=len(data))
        packed = data[tokens_at:cells_at]
        if len(packed) < cells_at - tokens_at:
            raise _Unusable("it has fewer tokens than it says")
        return SavedPrefix(
            owner=Owner(header.text_or_none("domain"), header.text("adapter")),
            tokens=[token for (token,) in struct.iter_unpack("<I", packed)],
            start=header.integer("start", low=0),
            cells=bytes(data[cells_at:]),
        )

    def _check(self, header: Fields) -> None:
        if header.text("fingerprint") != self._fingerprints.get(header.text("adapter")):
            raise _Unusable("the model, its adapter, its settings or llama.cpp changed since")
        age_s = time.time() - header.integer("saved_at", low=0)
        if age_s < 0:
            raise _Unusable("it comes from the future")
        if age_s > self._max_age_s:
            raise _Unusable(f"it is {format_duration(age_s)} old, which is more than allowed")

    def _write(self, name: str, parts: Collection[bytes]) -> None:
        for folder in (self._path.parent, self._path):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = self._path / (name + _UNFINISHED)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        descriptor = os.open(unfinished, flags, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(self._path / name)
            sync_folder(self._path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise

    def _names(self) -> list[str]:
        """Our files. Removes those that were being written when a worker was killed."""
        try:
            names = sorted(os.listdir(self._path))
        except OSError:
            return []
        for name in names:
            if name.endswith(_SUFFIX + _UNFINISHED):
                self._remove(name)
        return [name for name in names if name.endswith(_SUFFIX)]


def file_identity(path: Path) -> str:
    """What tells a model's file from every other, its former self included, without its being
    read as a whole; of a folder, those of its files. Raises `OSError`."""
    if path.is_dir():
        files = sorted(each for each in path.iterdir() if each.suffix in _FILES_OF_A_FOLDER)
        return " ".join(file_identity(each) for each in files)
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        digest = hashlib.sha256(file.read(_END_BYTES))
        file.seek(max(0, status.st_size - _END_BYTES))
        digest.update(file.read(_END_BYTES))
    return f"{status.st_size} {status.st_mtime_ns} {digest.hexdigest()}"


def _kind(owner: Owner) -> str:
    return _PINNED if owner.is_everybody else _SHARED


def _packed(tokens: Collection[int]) -> bytes:
    return struct.pack(f"<{len(tokens)}I", *tokens)


def _read_own_file(path: Path) -> bytes:
    """Nothing but a plain file that nobody else can have written. Raises `_Unusable`, `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise _Unusable("it is not a plain file of this user")
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise _Unusable("others may read or write it")
        return file.read()
