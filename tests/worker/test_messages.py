"""What a step says arrives as it was, though most of it is left out where there is nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawctl.wire.errors import RemoteProtocolError
from openclawctl.wire.framing import decode_payload, encode_frame
from openclawctl.wire.tokens import TokenLogprob
from openclawctl.wire.tools import ToolCall
from openclawd.worker.messages import Ended, Output, Step, decode_from_worker, encode

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
counts = st.integers(0, 2**31 - 1)
logprobs = st.builds(
    TokenLogprob, counts, texts, st.floats(-100, 0), top=st.just([TokenLogprob(1, "a", -1.0)])
)
outputs = st.builds(
    Output,
    counts,
    counts,
    texts,
    st.lists(counts, max_size=3),
    embedding=st.none() | st.binary(min_size=4, max_size=8),
    cached_tokens=counts,
    logprobs=st.none() | st.lists(logprobs, min_size=1, max_size=2),
    reasoning=texts,
    tool_calls=st.lists(st.just(ToolCall("call-1", "look", "{}")), max_size=1),
    mu=st.none() | st.floats(-100, 100),
)
ends = st.builds(Ended, counts, st.lists(st.just("stop"), max_size=2), counts, counts, counts)
plain = st.builds(Output, counts, counts, texts, st.lists(counts, min_size=1, max_size=1))
steps = st.builds(
    Step,
    st.lists(plain | outputs, max_size=4),
    st.lists(ends, max_size=2),
    st.dictionaries(texts, counts, max_size=3),
)


@given(steps)
def test_a_step_arrives_as_it_was(step):
    assert decode_from_worker(decode_payload(encode_frame(encode(step))[4:])) == step


@pytest.mark.parametrize(
    "wrong",
    [
        {"rid": -1},
        {"rid": True},
        {"index": 0.0},
        {"text": b"a"},
        {"token_ids": [True]},
        {"token_ids": [2**32]},
        {"token_ids": "7"},
    ],
)
def test_a_plain_output_that_is_wrong_is_refused(wrong):
    output = {"rid": 1, "index": 0, "text": "a", "token_ids": [7], **wrong}
    with pytest.raises(RemoteProtocolError):
        decode_from_worker({"type": "step", "outputs": [output]})
