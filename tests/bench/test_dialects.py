"""What the load process reads is what a server wrote, however its bytes were cut."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from answers import Answer, Ask
from dialects import LlamaServerExchange, OpenclawdExchange, PythonServerExchange
from hypothesis import given
from hypothesis import strategies as st

from openclawctl.wire.framing import encode_frame

if TYPE_CHECKING:
    from dialects import Exchange

ASK = Ask(max_tokens=3, prompt="one two")
PIECES = (" grün", "\n\n", " 0\r\n\r\n")
"""With all that the end of an answer could be mistaken for."""


def http(*events: dict[str, Any], end: bytes = b"") -> bytes:
    """A streamed answer as llama-server and uvicorn write it: a chunk for each event."""
    chunks = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    framed = [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in [*chunks, *filter(None, [end])]]
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(framed) + b"0\r\n\r\n"


def of_llama_server() -> bytes:
    timings = {"cache_n": 1, "prompt_n": 4, "predicted_n": 3}
    tokens = [{"content": piece, "tokens": [7], "stop": False} for piece in PIECES]
    last = {"content": "", "tokens": [], "stop": True, "stop_type": "limit", "timings": timings}
    return http(*tokens, last)


def of_llama_server_chat() -> bytes:
    timings = {"cache_n": 1, "prompt_n": 4, "predicted_n": 3}
    role = {"choices": [{"delta": {"role": "assistant", "content": None}, "finish_reason": None}]}
    tokens = [{"choices": [{"delta": {"content": p}, "finish_reason": None}]} for p in PIECES]
    last = {"choices": [{"delta": {}, "finish_reason": "length"}], "timings": timings}
    return http(role, *tokens, last, end=b"data: [DONE]\n\n")


def of_python_server() -> bytes:
    tokens = [{"choices": [{"text": piece, "finish_reason": None}]} for piece in PIECES]
    last = {"choices": [{"text": "", "finish_reason": "length"}]}
    return http(*tokens, last, end=b": ping\n\ndata: [DONE]\n\n")


def of_openclawd() -> bytes:
    deltas = [{"type": "delta", "id": 1, "text": piece, "token_ids": [7]} for piece in PIECES]
    usage = {"prompt_tokens": 5, "cached_tokens": 1, "completion_tokens": 3}
    choices = [{"finish_reason": "length"}]
    result = {"choices": choices, "usage": usage, "timings": {"ttft_s": 0.1}}
    messages = [{"type": "welcome"}, *deltas, {"type": "done", "id": 1, "result": result}]
    return b"".join(map(encode_frame, messages))


SERVERS = {
    "openclawd": (OpenclawdExchange, of_openclawd()),
    "llama-server": (LlamaServerExchange, of_llama_server()),
    "llama-server, chat": (LlamaServerExchange, of_llama_server_chat()),
    "python-server": (PythonServerExchange, of_python_server()),
}


@pytest.mark.parametrize("name", SERVERS)
@given(data=st.data())
def test_any_cutting_gives_the_same_answer(name: str, data: st.DataObject) -> None:
    make, written = SERVERS[name]
    places = st.integers(1, len(written) - 1)
    cuts = [0, *sorted(data.draw(st.sets(places, max_size=12))), len(written)]
    reads = [written[low:high] for low, high in pairwise(cuts)]
    exchange: Exchange = make(ASK)
    ends = [exchange.feed(float(time_s), read) for time_s, read in enumerate(reads)]
    assert ends == [False] * (len(reads) - 1) + [True]
    answer = Answer(sent_s=-1.0)
    exchange.read_into(answer)
    assert answer.error is None
    assert answer.text == "".join(PIECES)
    assert answer.finish_reason == "length"
    assert len(answer.token_times_s) == 3
    assert answer.token_times_s == sorted(answer.token_times_s)
    assert answer.prompt_tokens in {5, None}
    assert answer.cached_tokens in {1, None}


def test_tokens_have_the_time_of_the_read_that_completed_them() -> None:
    written = of_llama_server()
    second = written.index(b"data: ", written.index(b"data: ") + 1)
    exchange = LlamaServerExchange(ASK)
    for time_s, read in enumerate((written[:second], written[second:])):
        exchange.feed(float(time_s), read)
    answer = Answer(sent_s=-1.0)
    exchange.read_into(answer)
    assert answer.token_times_s == [0.0, 1.0, 1.0]
    assert answer.ttft_s == 1.0


@pytest.mark.parametrize("make", [LlamaServerExchange, PythonServerExchange])
def test_a_refusal_is_an_error(make: Any) -> None:
    body = b'{"error": "no"}'
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body)
    exchange = make(ASK)
    assert not exchange.feed(0.0, head + body[:4])
    assert exchange.feed(0.0, body[4:])
    answer = Answer(sent_s=0.0)
    exchange.read_into(answer)
    assert "no" in (answer.error or "")


def test_an_error_of_the_daemon_is_one() -> None:
    exchange = OpenclawdExchange(ASK)
    failed = {"type": "error", "id": 1, "code": "overloaded", "message": "too much"}
    assert exchange.feed(0.0, encode_frame(failed))
    answer = Answer(sent_s=0.0)
    exchange.read_into(answer)
    assert answer.error == "overloaded: too much"
