"""Frames: round trips, any chunking, limits before memory, and two decoders that agree."""

import contextlib
import struct
import tracemalloc

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wire.strategies import json_values, maps

from openclawctl.wire import framing
from openclawctl.wire.errors import LocalProtocolError, RemoteProtocolError
from openclawctl.wire.framing import (
    MAX_DEPTH,
    MAX_FRAME_BYTES,
    MAX_ITEMS,
    FrameReader,
    decode_payload,
    encode_frame,
)


def frame(payload):
    return struct.pack(">I", len(payload)) + payload


def nested(depth, *, of):
    value = 1
    for _ in range(depth):
        value = [value] if of is list else {"k": value}
    return value


def decode_carefully(payload):
    return framing._Decoder(payload, max_items=MAX_ITEMS).decode()


def decode_quickly(payload):
    return framing._decode_quickly(payload, max_items=MAX_ITEMS)


def cut(data, sizes):
    """The bytes in chunks of these sizes, and the rest."""
    chunks = []
    for size in sizes:
        chunks.append(data[:size])
        data = data[size:]
    return [*chunks, data]


@given(st.lists(maps, max_size=5), st.lists(st.integers(1, 40), max_size=50))
def test_any_chunking_gives_the_same_payloads(payloads, sizes):
    data = b"".join(encode_frame(payload) for payload in payloads)
    reader = FrameReader(max_bytes=MAX_FRAME_BYTES)
    found = []
    for chunk in cut(data, sizes):
        reader.feed(chunk)
        found.extend(reader.payloads())
    assert found == payloads
    assert reader.num_buffered_bytes == 0


def test_bytes_of_a_frame_that_is_not_complete_are_counted():
    reader = FrameReader(max_bytes=100)
    reader.feed(frame(b"\x80")[:-1])
    assert reader.next_payload() is None
    assert reader.num_buffered_bytes == 4


@given(st.binary(max_size=300))
def test_random_bytes_give_payloads_or_a_protocol_error(data):
    reader = FrameReader(max_bytes=1000)
    reader.feed(data)
    with contextlib.suppress(RemoteProtocolError):
        assert all(isinstance(payload, dict) for payload in reader.payloads())


@given(st.binary(max_size=200))
@example(b"\xc1")
@example(b"\x81\xc0\x01")
@example(b"\x81\xa1a\xd9\xff")
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\x81\xa1\xff\x01")
def test_random_payloads_give_a_map_or_a_protocol_error(payload):
    with contextlib.suppress(RemoteProtocolError):
        assert isinstance(decode_payload(payload), dict)


def outcome(decode, payload):
    try:
        return repr(decode(payload))  # NaN is not equal to itself, its text is
    except (RemoteProtocolError, msgpack.UnpackException, ValueError):
        return "refused"


@given(json_values.map(msgpack.packb) | st.binary(max_size=60))
@example(msgpack.packb({"a": 1}) + b"\x00")
@example(b"\x81\x01\x02")
@example(b"\x81\xa1a\xff\x81")
@example(b"\x82\xa1a\x01\xa1a\x02")
@example(b"\x81\xa1a\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00")
def test_the_fast_and_the_careful_decoder_agree(payload):
    if (quick := decode_quickly(payload)) is not None:
        assert repr(quick) == outcome(decode_carefully, payload)


@given(json_values, st.binary(max_size=3), st.integers(0, 200))
def test_they_agree_on_damaged_payloads_too(value, junk, offset):
    whole = msgpack.packb({"k": value})
    payload = whole[:offset] + junk + whole[offset + 1 :]
    if (quick := decode_quickly(payload)) is not None:
        assert repr(quick) == outcome(decode_carefully, payload)


@pytest.mark.parametrize(
    "value",
    [
        {"type": "cancel", "id": 3},
        {"v": [b"bin", None, True, 1.5, "text", {"k": [[1]]}]},
        {"v": [list(range(255)) for _ in range(100)]},
        {"k": nested(MAX_DEPTH - 1, of=list)},
    ],
)
def test_usual_frames_are_decoded_quickly(value):
    assert decode_quickly(msgpack.packb(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        {"v": list(range(257))},
        {"v": "x" * 65_536},
        {"v": {b"key": 1}},
        {"v": msgpack.ExtType(5, b"data")},
        {"v": [msgpack.Timestamp(0)]},
        {"k": nested(MAX_DEPTH, of=dict)},
        [1],
        1,
    ],
)
def test_what_may_be_over_a_limit_is_looked_at_first(value):
    assert decode_quickly(msgpack.packb(value)) is None


@pytest.mark.parametrize("kind", [list, dict])
def test_depth_up_to_the_limit(kind):
    deepest = {"k": nested(MAX_DEPTH - 1, of=kind)}
    assert decode_payload(msgpack.packb(deepest)) == deepest
    with pytest.raises(RemoteProtocolError, match=f"deeper than {MAX_DEPTH} levels"):
        decode_payload(msgpack.packb({"k": nested(MAX_DEPTH, of=kind)}))


def test_items_up_to_the_limit():
    most = {"k": list(range(MAX_ITEMS - 1))}
    assert decode_payload(msgpack.packb(most)) == most
    with pytest.raises(RemoteProtocolError, match=f"more than {MAX_ITEMS} items"):
        decode_payload(msgpack.packb({"k": list(range(MAX_ITEMS))}))


def test_a_reader_may_allow_more_items():
    value = {"k": list(range(MAX_ITEMS))}
    reader = FrameReader(max_bytes=MAX_FRAME_BYTES, max_items=MAX_ITEMS + 1)
    reader.feed(encode_frame(value))
    assert reader.next_payload() == value
    reader = FrameReader(max_bytes=MAX_FRAME_BYTES)
    reader.feed(encode_frame(value))
    with pytest.raises(RemoteProtocolError, match="items"):
        reader.next_payload()


def test_items_of_all_levels_are_counted_together():
    value = {"k": [list(range(300)) for _ in range(300)]}
    with pytest.raises(RemoteProtocolError, match="items"):
        decode_payload(msgpack.packb(value))


def test_a_key_that_stands_twice_has_its_last_value():
    assert decode_payload(b"\x82\xa1a\x01\xa1a\x02") == {"a": 2}
    assert decode_payload(b"\x82\xa1a\x01\xa1a\xc4\x01x") == {"a": b"x"}


def bomb(header, *, levels):
    """A container that declares much, in a container that declares much, …"""
    return b"\x81\xa1k" + header * levels


HOSTILE = {
    "array32 of four billion": b"\x81\xa1k\xdd\xff\xff\xff\xff",
    "map32 of four billion": b"\x81\xa1k\xdf\xff\xff\xff\xff",
    "the root declares four billion": b"\xdf\xff\xff\xff\xff",
    "array16 of 65,535": b"\x81\xa1k\xdc\xff\xff",
    "map16 of 65,535": b"\x81\xa1k\xde\xff\xff",
    "array16 in array16": bomb(b"\xdc\xff\xff", levels=20),
    "array16 of 2,000 in each other": bomb(b"\xdc\x07\xd0", levels=31),
    "str32 of four billion": b"\x81\xa1k\xdb\xff\xff\xff\xff",
    "bin32 of four billion": b"\x81\xa1k\xc6\xff\xff\xff\xff",
    "str16 cut short": b"\x81\xa1k\xda\xff\xffabc",
    "fixext": b"\x81\xa1k\xd4\x01\x00",
    "timestamp": msgpack.packb({"k": msgpack.Timestamp(1)}),
    "ext32 of four billion": b"\x81\xa1k\xc9\xff\xff\xff\xff\x01",
    "the root is an extension": b"\xd4\x01\x00",
    "an integer as a key": b"\x81\x01\x02",
    "nil as a key": b"\x81\xc0\x02",
    "a list as a key": b"\x81\x90\x02",
    "binary as a key": b"\x81\xc4\x01k\x02",
    "an extension as a key": b"\x81\xd4\x01\x00\x02",
    "the byte that is never used": b"\x81\xa1k\xc1",
    "not UTF-8": b"\x81\xa1k\xa1\xff",
    "not UTF-8, beside binary": b"\x82\xa1j\xc4\x01x\xa1k\xa1\xff",
    "two values": b"\x80\x80",
    "two values, with binary": b"\x81\xa1k\xc4\x01x\x80",
    "nothing after a key": b"\x81\xa1k",
    "nothing after a key, with binary": b"\x82\xa1k\xc4\x01x\xa1j",
    "a list": b"\x91\x01",
    "a number": b"\x01",
    "10,000 open lists": b"\x81\xa1k" + b"\x91" * 10_000,
    "10,000 open maps": b"\x81\xa1k" * 10_000,
}


@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_payloads_are_refused_without_taking_memory(payload):
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            decode_payload(payload)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 128 * 1024 + 4 * len(payload)


def test_the_most_memory_a_largest_frame_can_take():
    """65,536 items of a frame of 16 MiB cost their bytes and a bounded part on top."""
    size = MAX_FRAME_BYTES // (MAX_ITEMS - 1) - 8
    payload = msgpack.packb({"k": [b"x" * size for _ in range(MAX_ITEMS - 1)]})
    tracemalloc.start()
    try:
        decode_payload(payload)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * MAX_FRAME_BYTES


@pytest.mark.parametrize("length", [0, 1001, 2**31, 2**32 - 1])
def test_a_declared_length_is_refused_before_the_body_arrives(length):
    reader = FrameReader(max_bytes=1000)
    reader.feed(struct.pack(">I", length))
    with pytest.raises(RemoteProtocolError, match=f"declares {length} bytes; the limit is 1000"):
        reader.next_payload()


def test_the_limit_may_rise_while_frames_wait():
    reader = FrameReader(max_bytes=20)
    data = encode_frame({"k": 1}) + encode_frame({"k": "x" * 50})
    reader.feed(data)
    assert reader.next_payload() == {"k": 1}
    reader.max_bytes = 100
    assert reader.next_payload() == {"k": "x" * 50}


def test_own_messages_keep_the_limit_too():
    assert len(encode_frame({"k": "x" * 90}, max_bytes=100)) <= 104
    with pytest.raises(LocalProtocolError, match="103 bytes is over the frame limit of 100"):
        encode_frame({"k": "x" * 98}, max_bytes=100)
