"""Hashes of what prompts begin with: alike exactly where the prompts are; none without a key."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from openclawctl.wire.errors import RemoteProtocolError
from openclawd.worker.messages import (
    HASH_BYTES,
    PREFIX_LENGTHS,
    Prepared,
    decode_from_worker,
    encode,
)
from openclawd.worker.prefix_hashes import prefix_hashes

KEY = b"k" * 32


def hashes(tokens: list[int], *, key: bytes = KEY, adapter: str = "") -> list[bytes]:
    joined = prefix_hashes(tokens, key, adapter=adapter)
    return [hash_ for _, hash_ in Prepared(1, 1, prefix_hashes=joined).prefixes]


@given(st.integers(0, 5000))
def test_one_for_each_length_that_is_reached(num_tokens: int) -> None:
    reached = sum(num_tokens >= length for length in PREFIX_LENGTHS)
    assert len(hashes([7] * num_tokens)) == reached


@given(st.integers(0, 1200), st.integers(1, 300))
def test_prompts_that_part_later_have_the_earlier_ones_in_common(at: int, rest: int) -> None:
    first, second = (hashes([7] * at + [other] * (rest + 64)) for other in (1, 2))
    same = sum(length <= at for length in PREFIX_LENGTHS)
    assert first[:same] == second[:same]
    assert not set(first[same:]) & set(second[same:])


def test_another_key_or_adapter_gives_other_hashes() -> None:
    tokens = list(range(300))
    every = [*hashes(tokens), *hashes(tokens, key=b"x" * 32), *hashes(tokens, adapter="a")]
    assert len(set(every)) == 6
    assert {len(hash_) for hash_ in every} == {HASH_BYTES}


def test_without_a_key_there_are_none() -> None:
    assert prefix_hashes([1] * 5000, b"", adapter="") == b""


def test_over_the_link() -> None:
    message = Prepared(1, 70, 70, prefix_hashes=prefix_hashes([1] * 70, KEY, adapter=""))
    assert decode_from_worker(encode(message)) == message
    assert [length for length, _ in message.prefixes] == [64]


@given(st.binary(max_size=100))
def test_what_are_no_hashes_is_refused(data: bytes) -> None:
    is_good = len(data) % HASH_BYTES == 0 and len(data) <= HASH_BYTES * len(PREFIX_LENGTHS)
    try:
        decode_from_worker(encode(Prepared(1, 1, prefix_hashes=data)))
    except RemoteProtocolError:
        assert not is_good
    else:
        assert is_good
