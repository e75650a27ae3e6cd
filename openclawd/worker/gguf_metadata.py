"""The metadata of a GGUF file and the sizes of its tensors, without a library and without reading a
weight.

Owns the layout of the file. The file is hostile: every length is checked against what there is, and
`MAX_KEYS` and `MAX_TENSORS` bound how long it can take. What the keys mean is `gguf_shape.py`'s.

Source of the layout: llama.cpp, `ggml/include/gguf.h`.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, field
from typing import Any, Final

from openclawd.backends.base import CannotLoad, unreadable
from openclawd.backends.gguf_file import check_gguf_file

MAX_KEYS: Final = 65_536
MAX_TENSORS: Final = 1_000_000
MAX_NUMBERS: Final = 4096
"""Longer arrays are skipped: they have something of each token, and not of each layer."""

_SCALARS: Final = {  # enum gguf_type
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_BLOCKS: Final = {  # enum ggml_type: numbers in a block, and its bytes (ggml-common.h)
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110),
    22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8),
    29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip
_STRING: Final = 8
_ARRAY: Final = 9
_ALIGNMENT: Final = 32
_START: Final = 8  # behind the magic and the version


@dataclass(frozen=True, slots=True)
class Tensor:
    """`kind` is its number format (`enum ggml_type` of ggml.h)."""

    num_bytes: int
    num_dimensions: int
    kind: int


@dataclass(slots=True)
class GgufMetadata:
    """`values` of all keys; of an array of texts its length, and in `text_bytes` that of the texts
    together. `tensors` are all of them by name."""

    values: dict[str, Any] = field(default_factory=dict)
    text_bytes: dict[str, int] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


def read_gguf_metadata(path: str) -> GgufMetadata:
    """Raises `CannotLoad` for what is no GGUF file, or cut off, or cannot be read."""
    check_gguf_file(path)
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            reader = _Reader(data)
            found = reader.read()
    except (struct.error, UnicodeDecodeError, _BadFile) as error:
        raise CannotLoad(
            f"{path} is cut off or damaged in its first part: {error}",
            hint="copy or download the file again and compare its checksum",
            permanent=True,
        ) from None
    except OSError as error:
        raise unreadable(path, error) from None
    if reader.missing_bytes > 0:
        raise CannotLoad(
            f"{path} is cut off: its last {reader.missing_bytes} bytes are missing",
            hint="copy or download the file again and compare its checksum",
            permanent=True,
        )
    return found


class _BadFile(Exception):
    pass


class _Reader:
    """From the front to the end of the list of tensors. `struct` refuses to read past the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = _START
        self._found = GgufMetadata()
        self.missing_bytes = 0
        """How far tensors of known formats reach beyond the end."""

    def read(self) -> GgufMetadata:
        num_tensors = self._bounded("<q", MAX_TENSORS, "tensors")
        for _ in range(self._bounded("<q", MAX_KEYS, "keys")):
            key = self._text()
            self._found.values[key] = self._value(self._scalar("<I"), key)
        starts = [self._tensor() for _ in range(num_tensors)]
        self._measure(starts)
        return self._found

    def _measure(self, starts: list[tuple[int, str, list[int], int]]) -> None:
        """Each tensor reaches to the next one, the last one to the end of the file."""
        alignment = self._found.values.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
            raise _BadFile("its alignment is no number that it could be")
        base = -(-self._at // alignment) * alignment
        starts.sort()
        ends = [start for start, *_ in starts[1:]] + [len(self._data) - base]
        for (start, name, shape, kind), end in zip(starts, ends, strict=True):
            if not 0 <= start <= end:
                raise _BadFile(f"tensor {name[:64]!r} begins behind the end of the file")
            self._found.tensors[name] = Tensor(end - start, len(shape), kind)
            numbers, num_bytes = _BLOCKS.get(kind, (1, 0))
            reach = base + start + math.prod(shape) // numbers * num_bytes
            self.missing_bytes = max(self.missing_bytes, reach - len(self._data))

    def _tensor(self) -> tuple[int, str, list[int], int]:
        """Where it begins, its name, its shape, and its kind."""
        name = self._text()
        num_dimensions = self._bounded("<I", 4, "dimensions of a tensor")
        shape = [self._scalar("<Q") for _ in range(num_dimensions)]
        kind = self._scalar("<I")
        return self._scalar("<Q"), name, shape, kind

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY:
            return self._array(key)
        return self._scalar(_format(kind))

    def _array(self, key: str) -> Any:
        kind = self._scalar("<I")
        length = self._bounded("<Q", len(self._data), "items of an array")
        if kind == _STRING:
            lengths = (self._skip(self._scalar("<Q")) for _ in range(length))
            self._found.text_bytes[key] = sum(lengths)
            return length
        code = _format(kind)
        if length > MAX_NUMBERS:
            self._skip(length * struct.calcsize(code))
            return length
        return [self._scalar(code) for _ in range(length)]

    def _text(self) -> str:
        length = self._bounded("<Q", len(self._data), "bytes of a text")
        start = self._at
        self._skip(length)
        return self._data[start : start + length].decode("utf-8", "replace")

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(code, self._data, self._at)
        self._at += struct.calcsize(code)
        return value

    def _bounded(self, code: str, most: int, what: str) -> int:
        number: int = self._scalar(code)
        if not 0 <= number <= most:
            raise _BadFile(f"it says that it has {number} {what}")
        return number

    def _skip(self, length: int) -> int:
        self._at += length
        if self._at > len(self._data):
            raise _BadFile("it ends too early")
        return length


def _format(kind: int) -> str:
    if kind not in _SCALARS:
        raise _BadFile(f"it has a value of the unknown kind {kind}")
    return _SCALARS[kind]
