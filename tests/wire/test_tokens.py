"""Records of tokens: how many items of a frame they are."""

from hypothesis import given
from hypothesis import strategies as st
from wire.strategies import logprobs

from openclawctl.wire.tokens import encode_logprobs, num_items


def items_of(value):
    """List entries and map pairs, all levels together, as a frame's limit counts them."""
    if isinstance(value, dict):
        return len(value) + sum(map(items_of, value.values()))
    if isinstance(value, list):
        return len(value) + sum(map(items_of, value))
    return 0


@given(logprobs)
def test_no_record_has_more_items_than_is_said(records):
    allowed = sum(num_items(1, num_top=len(record.top)) for record in records)
    assert items_of(encode_logprobs(records)) <= allowed


@given(st.integers(0, 100), st.integers(0, 20))
def test_items_add_up(num_tokens, num_top):
    assert num_items(num_tokens, num_top=num_top) == num_tokens * num_items(1, num_top=num_top)
