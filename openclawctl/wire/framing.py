"""Frames: a `uint32` big-endian length, then one msgpack map.

Owns the limits on what a peer may make us allocate. Knows nothing of message types.

Invariants: a declared length is refused before any of the body is kept; nesting depth and the
number of items are checked before the containers exist, because a four-byte msgpack header can
declare a list of four billion entries; any bytes at all give payload maps or `RemoteProtocolError`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

import msgpack

from openclawctl.wire.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HELLO_FRAME_BYTES: Final = 64 * 1024
"""Largest frame before `hello` is accepted: an unknown caller gets no more memory than this."""

MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
"""Default largest frame afterwards: about four million words of text."""

MOST_FRAME_BYTES: Final = 1024 * 1024 * 1024
"""The most that an administrator may allow instead."""

MAX_DEPTH: Final = 32
"""Deepest nesting. JSON schemas and tool definitions, the deepest honest input, stay under 20."""

MAX_ITEMS: Final = 65_536
"""Most list entries and map pairs in one frame, all levels together. Decoding that many takes about
14 ms (measured 2026-11-23), the longest that one frame may hold up the daemon's loop."""

MAX_RESULT_ITEMS: Final = 1_048_576
"""The same for frames to a client: room for the token ids of the longest answers, and for what was
merged of the deltas of a slow client. A client chooses which daemon it asks."""

_LENGTH = struct.Struct(">I")


def encode_frame(message: dict[str, Any], *, max_bytes: int = MAX_FRAME_BYTES) -> bytes:
    """One frame. Raises `LocalProtocolError` when the message is larger than the peer accepts."""
    payload: bytes = msgpack.packb(message, use_bin_type=True)
    if len(payload) > max_bytes:
        raise LocalProtocolError(
            f"a message of {len(payload)} bytes is over the frame limit of {max_bytes} bytes"
        )
    return _LENGTH.pack(len(payload)) + payload


class FrameReader:
    """Cuts a byte stream into payload maps. `max_bytes` may be raised while frames are waiting."""

    def __init__(self, *, max_bytes: int, max_items: int = MAX_ITEMS) -> None:
        self.max_bytes = max_bytes
        self._max_items = max_items
        self._buffer = bytearray()

    @property
    def num_buffered_bytes(self) -> int:
        """Bytes of a frame that is not complete yet. 0 at a clean end of the stream."""
        return len(self._buffer)

    def feed(self, data: bytes | memoryview) -> None:
        """Append received bytes. Bounded by the caller's read size plus one frame."""
        self._buffer += data

    def next_payload(self) -> dict[str, Any] | None:
        """The next complete payload, or None when more bytes are needed.

        Raises `RemoteProtocolError` for a frame that is too large, empty, or not a valid map.
        """
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if not 0 < length <= self.max_bytes:
            raise RemoteProtocolError(
                f"a frame declares {length} bytes; the limit is {self.max_bytes} bytes"
            )
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        payload = bytes(memoryview(self._buffer)[_LENGTH.size : end])
        del self._buffer[:end]  # a bytearray drops its front without copying the rest
        return decode_payload(payload, max_items=self._max_items)

    def payloads(self) -> Iterator[dict[str, Any]]:
        """Every payload that is complete now."""
        while (payload := self.next_payload()) is not None:
            yield payload


def decode_payload(payload: bytes, *, max_items: int = MAX_ITEMS) -> dict[str, Any]:
    """Decode one msgpack map under the depth and item limits, or raise `RemoteProtocolError`."""
    if (quick := _decode_quickly(payload, max_items=max_items)) is not None:
        return quick
    try:
        value = _Decoder(payload, max_items=max_items).decode()
    except (msgpack.UnpackException, ValueError) as error:
        raise RemoteProtocolError(f"a frame is not valid msgpack: {error or 'cut short'}") from None
    if not isinstance(value, dict):
        raise RemoteProtocolError("a frame must hold one msgpack map")
    return value


_QUICK_BYTES: Final = 64 * 1024
_QUICK_ITEMS: Final = 256
"""Frames of so many bytes, with so many entries in each container, may be decoded before they are
looked at. An honest frame's objects take 60 times its bytes at most, which is 4 MB, and a frame
whose headers lie makes msgpack's decoder, which follows 1,024 levels, take 2 MB."""


def _decode_quickly(payload: bytes, *, max_items: int) -> dict[str, Any] | None:
    """By msgpack's C code, if what comes out is within all limits: five times as fast (measured
    2026-11-29, a step of 16 tokens). None for whatever `_Decoder` has to judge."""
    if len(payload) > _QUICK_BYTES:
        return None
    try:
        value = msgpack.unpackb(
            payload, raw=False, max_array_len=_QUICK_ITEMS, max_map_len=_QUICK_ITEMS
        )
    except (msgpack.UnpackException, ValueError):
        return None
    is_map = isinstance(value, dict)
    return value if is_map and _num_items(value, MAX_DEPTH) <= max_items else None


_TOO_MANY: Final = 1 << 32


def _num_items(value: Any, depth_left: int) -> int:
    """Entries of a container, all levels together; too many for anybody if it is nested too deep,
    or holds what no frame may hold."""
    is_map = type(value) is dict
    items = value.values() if is_map else value
    kinds = set(map(type, items))
    if not (depth_left and kinds <= _KINDS and (not is_map or _TEXT.issuperset(map(type, value)))):
        return _TOO_MANY
    count = len(value)
    if not _CONTAINERS.isdisjoint(kinds):
        inner = (item for item in items if type(item) in _CONTAINERS)
        count += sum(_num_items(item, depth_left - 1) for item in inner)
    return count


_TEXT: Final = frozenset({str})
_CONTAINERS: Final = frozenset({dict, list})
_KINDS: Final = _CONTAINERS | {str, int, float, bool, bytes, type(None)}

# First bytes of containers and extensions (msgpack specification, "Formats", overview).
_MAPS = frozenset(range(0x80, 0x90)) | {0xDE, 0xDF}
_ARRAYS = frozenset(range(0x90, 0xA0)) | {0xDC, 0xDD}
_EXTENSIONS = frozenset({*range(0xC7, 0xCA), *range(0xD4, 0xD9)})
_NOT_SCALAR = _MAPS | _ARRAYS | _EXTENSIONS


class _Decoder:
    """Walks containers in Python, so that each is as large as what is really there, and leaves
    scalars to msgpack's C code."""

    def __init__(self, payload: bytes, *, max_items: int) -> None:
        self._payload = payload
        self._unpacker = msgpack.Unpacker(
            max_buffer_size=len(payload), read_size=len(payload), raw=False
        )
        self._unpacker.feed(payload)
        self._tell: Callable[[], int] = self._unpacker.tell
        self._scalar: Callable[[], Any] = self._unpacker.unpack
        self._max_items = self._items_left = max_items

    def decode(self) -> Any:
        value = self._value(MAX_DEPTH)
        if self._tell() != len(self._payload):
            raise RemoteProtocolError("a frame holds more than one msgpack value")
        return value

    def _value(self, depth_left: int) -> Any:
        first = self._first_byte()
        return self._compound(first, depth_left) if first in _NOT_SCALAR else self._scalar()

    def _first_byte(self) -> int:
        offset = self._tell()
        if offset >= len(self._payload):
            raise msgpack.OutOfData
        return self._payload[offset]

    def _compound(self, first: int, depth_left: int) -> Any:
        if first in _EXTENSIONS:
            raise RemoteProtocolError("msgpack extension types are not part of the protocol")
        if depth_left <= 0:
            raise RemoteProtocolError(f"a frame is nested deeper than {MAX_DEPTH} levels")
        return self._map(depth_left - 1) if first in _MAPS else self._array(depth_left - 1)

    def _take(self, num_items: int) -> int:
        self._items_left -= num_items
        if self._items_left < 0:
            raise RemoteProtocolError(f"a frame holds more than {self._max_items} items")
        return num_items

    def _map(self, depth_left: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for _ in range(self._take(self._unpacker.read_map_header())):
            if not isinstance(key := self._value(0), str):
                raise RemoteProtocolError("map keys must be strings")
            result[key] = self._value(depth_left)
        return result

    def _array(self, depth_left: int) -> list[Any]:
        result: list[Any] = []
        for _ in range(self._take(self._unpacker.read_array_header())):
            first = self._first_byte()
            is_compound = first in _NOT_SCALAR
            result.append(self._compound(first, depth_left) if is_compound else self._scalar())
        return result
