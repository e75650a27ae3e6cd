"""Parameters and results: round trips, ranges, and what is said about a wrong one."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire.strategies import json_values, params, results

from openclawctl.wire.completion import ChatParams
from openclawctl.wire.errors import InvalidRequest, RemoteProtocolError, Unsupported
from openclawctl.wire.fields import Fields
from openclawctl.wire.framing import decode_payload, encode_frame
from openclawctl.wire.operations import Op, decode_params, param_names
from openclawctl.wire.results import InferenceResult, Usage
from openclawctl.wire.sampling import SAMPLING_RANGES, Sampling


def over_the_wire(values):
    return decode_payload(encode_frame(values)[4:])


@pytest.mark.parametrize("op", list(Op))
@given(data=st.data())
def test_params_round_trip(op, data):
    asked = data.draw(params[op])
    received, unknown = decode_params(op, over_the_wire(asked.encode()))
    assert received == asked
    assert unknown == []


@given(results)
def test_results_round_trip(result):
    source = Fields(over_the_wire(result.encode()), where="result", error=RemoteProtocolError)
    assert InferenceResult.decode(source) == result


@pytest.mark.parametrize("op", list(Op))
@given(data=st.data())
def test_any_params_are_decoded_or_refused(op, data):
    names = st.sampled_from(sorted(param_names(op) or {"x"}))
    values = data.draw(st.dictionaries(names, json_values))
    with contextlib.suppress(InvalidRequest, Unsupported):
        decode_params(op, values)


@pytest.mark.parametrize("op", list(Op))
def test_unknown_params_are_named_in_their_order(op):
    known = {
        Op.GENERATE: {"prompt": "x"},
        Op.CHAT: {"messages": [{"role": "user", "content": "x"}]},
        Op.EMBED: {"input": ["x"]},
        Op.CLASSIFY: {"input": ["x"]},
        Op.RERANK: {"query": "x", "documents": ["x"]},
        Op.TOKENIZE: {"text": "x"},
        Op.KEYS_CREATE: {"name": "ci", "role": "user"},
        Op.KEYS_SHOW: {"name": "ci"},
        Op.KEYS_ROTATE: {"name": "ci"},
        Op.KEYS_REVOKE: {"name": "ci"},
        Op.LEDGER_PRUNE: {"older_than_s": 1},
        Op.REQUESTS_CANCEL: {"request_id": "r"},
        Op.PULL: {"source": "org/model"},
        Op.MODELS_REMOVE: {"model": "m"},
        Op.MODELS_VERIFY: {"model": "m"},
    }.get(op, {})
    _, unknown = decode_params(op, {"zebra": 1, **known, "ape": None})
    assert unknown == ["zebra", "ape"]


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("op", "values", "reason"),
    [
        (Op.GENERATE, {}, "generate: 'prompt' is missing; it must be a string"),
        (Op.GENERATE, {"prompt": [1, "a"]}, "'prompt' must be a list of integers, not a string"),
        (Op.GENERATE, {"prompt": [1, -1]}, "'prompt' is -1; allowed: 0 to"),
        (Op.GENERATE, {"prompt": [1] * 60_001}, "'prompt' has 60001 items; at most 60000"),
        (Op.GENERATE, {"prompt": "x", "n": 0}, "'n' is 0; allowed: 1 to 256"),
        (Op.GENERATE, {"prompt": "x", "echo": 1}, "'echo' must be true or false"),
        (Op.GENERATE, {"prompt": b"x"}, "'prompt' must be a string, not binary data"),
        (Op.GENERATE, {"prompt": "x", "max_tokens": 0}, "'max_tokens' is 0; allowed: 1 to"),
        (Op.GENERATE, {"prompt": "x", "temperature": -1}, "'temperature' is -1; allowed: 0 to 100"),
        (Op.GENERATE, {"prompt": "x", "temperature": float("nan")}, "'temperature' is nan"),
        (Op.GENERATE, {"prompt": "x", "top_p": True}, "must be a number, not true or false"),
        (Op.GENERATE, {"prompt": "x", "stream": 1}, "'stream' must be true or false"),
        (Op.GENERATE, {"prompt": "x", "stop": "y"}, "'stop' must be a list, not a string"),
        (Op.GENERATE, {"prompt": "x", "stop": [1]}, "'stop' must be a list of strings"),
        (Op.GENERATE, {"prompt": "x", "stop": [""]}, "'stop' string must have 1 to 256 characters"),
        (Op.GENERATE, {"prompt": "x", "stop": ["y"] * 17}, "'stop' has 17 items; at most 16"),
        (Op.GENERATE, {"prompt": "x", "logit_bias": [1]}, "list of [token_id, bias] pairs"),
        (Op.GENERATE, {"prompt": "x", "logit_bias": [[1, 2, 3]]}, "[token_id, bias] pairs"),
        (Op.GENERATE, {"prompt": "x", "logit_bias": [[-1, 2]]}, "logit_bias: 'token_id' is -1"),
        (Op.GENERATE, {"prompt": "x", "logit_bias": [[1, 1e9]]}, "logit_bias: 'bias' is"),
        (Op.GENERATE, {"prompt": "x", "priority": ""}, "allowed: batch, normal, interactive"),
        (Op.CHAT, {"messages": [USER], "deadline_s": 0}, "'deadline_s' is 0; allowed: 0.001 to"),
        (Op.EMBED, {"input": ["a"], "priority": "bach"}, "did you mean 'batch'?"),
        (Op.GENERATE, {"prompt": "x", "top_logprobs": 2}, "'top_logprobs' needs 'logprobs': true"),
        (Op.CHAT, {}, "chat: 'messages' is empty; a chat needs at least one message"),
        (Op.CHAT, {"messages": ["hi"]}, "messages[0] must be a map, not a string"),
        (Op.CHAT, {"messages": [{"content": "x"}]}, "messages[0]: 'role' is missing; allowed:"),
        (
            Op.CHAT,
            {"messages": [USER, {"role": "usr", "content": "x"}]},
            (
                "messages[1]: 'role' is 'usr'; allowed: system, user, assistant, tool; "
                "did you mean 'user'?"
            ),
        ),
        (Op.CHAT, {"messages": [{"role": "x" * 300, "content": ""}]}, "'role' has 300 characters"),
        (Op.CHAT, {"messages": [{"role": "user"}]}, "messages[0]: 'content' is missing"),
        (Op.CHAT, {"messages": [{"role": "user", "content": [{}]}]}, "content[0]: 'type'"),
        (Op.EMBED, {}, "embed: 'input' must hold at least one text, and no empty ones"),
        (Op.EMBED, {"input": ["a", ""]}, "no empty ones"),
        (Op.CLASSIFY, {"input": ["a", ""]}, "no empty ones"),
        (Op.CLASSIFY, {"input": ["a"], "top_k": 0}, "'top_k' is 0; allowed: 1 to 10000"),
        (Op.RERANK, {"documents": ["a"]}, "rerank: 'query' is missing"),
        (Op.RERANK, {"query": "", "documents": ["a"]}, "rerank: 'query' is empty"),
        (Op.RERANK, {"query": "a", "documents": []}, "'documents' must hold at least one text"),
        (Op.TOKENIZE, {"text": None}, "'text' is missing"),
        (Op.DETOKENIZE, {"tokens": [True]}, "must be a list of integers, not true or false"),
        (Op.DETOKENIZE, {"tokens": [-1]}, "'tokens' is -1; allowed: 0 to"),
        (Op.LOAD, {"model": "m" * 257}, "'model' has 257 characters; at most 256"),
        (Op.USAGE, {"by": "modle"}, "'by' is 'modle'; allowed: model, principal, key, app,"),
        (Op.USAGE, {"by": ["day", "dya"]}, "'by' is 'dya'; allowed"),
        (Op.USAGE, {"by": ["user", "principal"]}, "'by' names the same group twice"),
        (Op.USAGE, {"sort": "day"}, "'sort' is 'day'; allowed: model, requests,"),
        (Op.USAGE, {"since_s": 1, "since_at": 1}, "'since_s' and 'since_at' exclude each other"),
        (Op.USAGE, {"limit": 10_001}, "'limit' is 10001; allowed: 1 to 10000"),
        (Op.USAGE_ROWS, {"limit": 1001}, "'limit' is 1001; allowed: 1 to 1000"),
        (Op.USAGE_ROWS, {"after_seq": -1}, "'after_seq' is -1"),
        (Op.LEDGER_PRUNE, {}, "'older_than_s' is missing; it must be a number"),
        (Op.USAGE, {"since_s": -1}, "'since_s' is -1"),
        (Op.AUDIT, {"limit": 2001}, "'limit' is 2001; allowed: 1 to 2000"),
        (Op.AUDIT, {"limit": 0}, "'limit' is 0; allowed: 1 to 2000"),
        (Op.AUDIT_VERIFY, {"head": "12"}, "'head' is '12'; it must be SEQ:MAC"),
    ],
)
def test_what_is_wrong_is_said(op, values, reason):
    with pytest.raises(InvalidRequest) as caught:
        decode_params(op, values)
    assert reason in caught.value.message


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked, _ = decode_params(Op.CHAT, {"messages": [{"role": "user", "content": parts}]})
    assert isinstance(asked, ChatParams)
    assert asked.messages[0].content == "ab"


def test_media_parts_are_not_built_yet():
    parts = [{"type": "image", "data": b"..."}]
    with pytest.raises(Unsupported, match=r"content\[0\] is of type 'image'") as caught:
        decode_params(Op.CHAT, {"messages": [{"role": "user", "content": parts}]})
    assert caught.value.hint == "send the text parts alone"


def test_the_range_of_every_sampling_parameter():
    for name, (low, high) in SAMPLING_RANGES.items():
        for value in (low, high):
            asked, _ = decode_params(Op.GENERATE, {"prompt": "", "logprobs": True, name: value})
            assert getattr(asked.sampling, name) == value
        for value in (low - 1, high + 1):
            with pytest.raises(InvalidRequest, match=f"'{name}' is"):
                decode_params(Op.GENERATE, {"prompt": "", "logprobs": True, name: value})


def test_defaults_fill_what_a_request_leaves_out():
    asked = Sampling(temperature=0.0, seed=7)
    assert asked.over(Sampling(temperature=0.8, top_k=40)) == Sampling(0.0, 40, seed=7)


def test_usage_adds_up():
    assert Usage(10, 4, 5).total_tokens == 15
