"""Writes GGUF files, and reads the keys of one: enough to make small models for tests.

Source of the layout: llama.cpp, `ggml/include/gguf.h`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MAGIC: Final = b"GGUF"
_VERSION: Final = 3
_ALIGNMENT: Final = 32
_TENSOR_TYPES: Final = {np.dtype("<f4"): 0, np.dtype("<f2"): 1}

_STRING, _ARRAY = 8, 9
_FORMATS: Final = dict(enumerate(("<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?"))) | {
    10: "<Q",
    11: "<q",
    12: "<d",
}
_UINT32, _INT32, _FLOAT32, _BOOL = 4, 5, 6, 7

Value = bool | int | float | str | list[Any]


def write_gguf(path: Path, keys: Mapping[str, Value], tensors: Mapping[str, np.ndarray]) -> None:
    """Integers become uint32, in arrays int32; tensors stay float32 or float16."""
    infos, offset = b"", 0
    for name, values in tensors.items():
        infos += _bare(_STRING, name) + struct.pack("<I", values.ndim)
        infos += struct.pack(f"<{values.ndim}Q", *reversed(values.shape))
        infos += struct.pack("<IQ", _TENSOR_TYPES[values.dtype], offset)
        offset += len(_padded(values.tobytes()))
    header = struct.pack("<4sIQQ", _MAGIC, _VERSION, len(tensors), len(keys))
    pairs = b"".join(_bare(_STRING, key) + _typed(value) for key, value in keys.items())
    with path.open("wb") as file:
        file.write(_padded(header + pairs + infos))
        for values in tensors.values():
            file.write(_padded(values.tobytes()))


def read_keys(path: Path) -> dict[str, Any]:
    """The keys of a GGUF file that is known to be whole."""
    with path.open("rb") as file:
        reader = _Reader(file.read(16 << 20))  # SmolLM2's keys are 2 MB
    _, _, _, num_keys = reader.unpack("<4sIQQ")
    return {reader.string(): reader.value(reader.unpack("<I")[0]) for _ in range(num_keys)}


def copy_with_keys(source: Path, target: Path, keys: Mapping[str, Value]) -> None:
    """The same model with other keys, or more of them; its tensors stay as they are."""
    data = source.read_bytes()
    reader = _Reader(data)
    magic, version, num_tensors, num_keys = reader.unpack("<4sIQQ")
    kept = {}
    for _ in range(num_keys):
        start, name = reader.position, reader.string()
        reader.value(reader.unpack("<I")[0])
        kept[name] = data[start : reader.position]
    infos = reader.position
    for _ in range(num_tensors):
        reader.string()
        (num_dimensions,) = reader.unpack("<I")
        reader.unpack(f"<{num_dimensions}QIQ")
    changed = {name: _bare(_STRING, name) + _typed(value) for name, value in keys.items()}
    pairs = kept | changed
    header = struct.pack("<4sIQQ", magic, version, num_tensors, len(pairs))
    head = header + b"".join(pairs.values()) + data[infos : reader.position]
    tensors = reader.position + -reader.position % _ALIGNMENT
    target.write_bytes(_padded(head) + data[tensors:])


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def position(self) -> int:
        return self._position

    def unpack(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self._data, self._position)
        self._position += struct.calcsize(layout)
        return values

    def string(self) -> str:
        (length,) = self.unpack("<Q")
        start, self._position = self._position, self._position + length
        return self._data[start : self._position].decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            element, length = self.unpack("<IQ")
            return [self.value(element) for _ in range(length)]
        return self.unpack(_FORMATS[kind])[0]


def _typed(value: Value) -> bytes:
    if isinstance(value, list):
        kind = _INT32 if isinstance(value[0], int) else _kind(value[0])
        elements = b"".join(_bare(kind, element) for element in value)
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + elements
    return struct.pack("<I", _kind(value)) + _bare(_kind(value), value)


def _kind(value: Value) -> int:
    match value:
        case bool():
            return _BOOL
        case int():
            return _UINT32
        case float():
            return _FLOAT32
        case _:
            return _STRING


def _bare(kind: int, value: Any) -> bytes:
    if kind == _STRING:
        data = value.encode()
        return struct.pack("<Q", len(data)) + data
    return struct.pack(_FORMATS[kind], value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
