"""How each server is asked, and how its answer is read: openclawd's frames, and two kinds of HTTP.

Owns the bytes on both sides of an exchange. Knows no sockets and no clock: the load process hands
in what came and when. While an answer comes, only its end is looked for, which costs about the same
for every server; what it says is read when the measurement is over.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any, Final, Protocol

from live import MODEL

from openclawctl.wire.framing import MAX_FRAME_BYTES, FrameReader, encode_frame
from openclawctl.wire.messages import PROTOCOL_VERSION, Hello, Request, encode

if TYPE_CHECKING:
    from answers import Answer, Ask

END_TOKENS: Final = (0, 2)
"""<|endoftext|> and <|im_end|> of SmolLM2, for servers that know no `ignore_eos`."""

NEVER: Final = -100.0
"""A bias that keeps a token from being the likeliest."""


class Exchange(Protocol):
    """One request and what comes back. `feed` says whether the answer is complete."""

    def request(self) -> bytes: ...
    def feed(self, time_s: float, data: bytes) -> bool: ...
    def read_into(self, answer: Answer) -> None: ...


# ---- openclawd ----


class OpenclawdExchange:
    """Hello and the request go out in one write."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._pending = bytearray()
        self._reads: list[tuple[float, bytes]] = []

    def request(self) -> bytes:
        op = "generate" if self._ask.messages is None else "chat"
        messages = (
            Hello(PROTOCOL_VERSION, client="bench", key=self._ask.key),
            Request(1, op, _params(self._ask)),
        )
        return b"".join(encode_frame(encode(message)) for message in messages)

    def feed(self, time_s: float, data: bytes) -> bool:
        self._reads.append((time_s, data))
        pending = self._pending
        pending += data
        while len(pending) >= 4 and len(pending) >= (end := 4 + _LENGTH.unpack_from(pending)[0]):
            start = bytes(pending[4:24])  # {"type": "done", …
            del pending[:end]
            if b"\xa4done" in start or b"\xa5error" in start:
                return True
        return False

    def read_into(self, answer: Answer) -> None:
        reader = FrameReader(max_bytes=MAX_FRAME_BYTES)
        for time_s, data in self._reads:
            reader.feed(data)
            for message in reader.payloads():
                _take_message(answer, message, time_s)


_LENGTH: Final = struct.Struct(">I")


def _params(ask: Ask) -> dict[str, Any]:
    params = {
        "model": MODEL,
        "prompt": ask.prompt,
        "messages": ask.messages,
        "max_tokens": ask.max_tokens,
        "temperature": ask.temperature,
        "seed": ask.seed,
        "ignore_eos": ask.ignore_eos or None,
        "priority": ask.priority,
        "format": ask.schema and {"type": "json_schema", "schema": ask.schema},
        "stream": True,
    }
    return {name: value for name, value in params.items() if value is not None}


def _take_message(answer: Answer, message: dict[str, Any], time_s: float) -> None:
    match message["type"]:
        case "delta":
            answer.text += message.get("text") or ""
            token_ids = message.get("token_ids") or []
            answer.token_ids += token_ids
            answer.token_times_s += [time_s] * len(token_ids)
        case "done":
            result = message["result"]
            usage = result["usage"]
            answer.prompt_tokens = usage["prompt_tokens"]
            answer.cached_tokens = usage["cached_tokens"]
            answer.completion_tokens = usage["completion_tokens"]
            answer.finish_reason = result["choices"][0]["finish_reason"]
            answer.extra = result["timings"]
        case "error":
            answer.error = f"{message['code']}: {message['message']}"


# ---- HTTP ----


class HttpExchange:
    """A streamed POST: events (`data: {…}`) in chunks. A refusal has a length instead."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._reads: list[tuple[float, bytes]] = []
        self._head: bytes | None = b""  # until it is complete
        self._tail = b""
        self._num_missing: int | None = None  # of an answer that is not chunked

    def request(self) -> bytes:
        path, body = self._body(self._ask)
        payload = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(payload)}\r\n\r\n"
        )
        return head.encode() + payload

    def feed(self, time_s: float, data: bytes) -> bool:
        self._reads.append((time_s, data))
        if self._head is not None:
            self._head += data
            head, separator, data = self._head.partition(b"\r\n\r\n")
            if not separator:
                return False
            self._head = None
            if b"chunked" not in head.lower():
                length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
                self._num_missing = int(length or 0)
        if self._num_missing is not None:
            self._num_missing -= len(data)
            return self._num_missing <= 0
        self._tail = (self._tail + data)[-len(_LAST_CHUNK) :]
        return self._tail == _LAST_CHUNK

    def read_into(self, answer: Answer) -> None:
        if self._num_missing is not None:
            answer.error = b"".join(data for _, data in self._reads).decode(errors="replace")
            return
        for time_s, line in _lines(self._reads):
            if line.startswith(b"data: {"):
                self._take_event(answer, json.loads(line[6:]), time_s)

    def _body(self, ask: Ask) -> tuple[str, dict[str, Any]]:
        raise NotImplementedError

    def _take_event(self, answer: Answer, event: dict[str, Any], time_s: float) -> None:
        raise NotImplementedError


_LAST_CHUNK: Final = b"\r\n0\r\n\r\n"


def _lines(reads: list[tuple[float, bytes]]) -> list[tuple[float, bytes]]:
    """The lines of a chunked body, each with the time when its chunk was complete."""
    lines: list[tuple[float, bytes]] = []
    raw, body = bytearray(), bytearray()
    is_head = True
    for time_s, data in reads:
        raw += data
        if is_head and b"\r\n\r\n" in raw:
            del raw[: raw.index(b"\r\n\r\n") + 4]
            is_head = False
        while not is_head and (chunk := _take_chunk(raw)) is not None:
            body += chunk
            *whole, rest = body.split(b"\n")
            lines += [(time_s, bytes(line)) for line in whole]
            body = bytearray(rest)
    return lines


def _take_chunk(raw: bytearray) -> bytes | None:
    """The next chunk's payload, taken off `raw`; None when it is not complete."""
    size_end = raw.find(b"\r\n")
    if size_end < 0:
        return None
    start = size_end + 2
    end = start + int(raw[:size_end], 16)
    if len(raw) < end + 2:
        return None
    payload = bytes(raw[start:end])
    del raw[: end + 2]
    return payload


class LlamaServerExchange(HttpExchange):
    """Its own `/completion`, and the chat endpoint, which applies the model's template."""

    def _body(self, ask: Ask) -> tuple[str, dict[str, Any]]:
        body: dict[str, Any] = {
            "temperature": ask.temperature,
            "ignore_eos": ask.ignore_eos,
            "stream": True,
        }
        if ask.seed is not None:
            body["seed"] = ask.seed
        if ask.messages is None:
            body |= {"prompt": ask.prompt, "n_predict": ask.max_tokens}
            return "/completion", body | ({"json_schema": ask.schema} if ask.schema else {})
        body |= {"messages": ask.messages, "max_tokens": ask.max_tokens}
        if ask.schema:
            schema = {"name": "answer", "schema": ask.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return "/v1/chat/completions", body

    def _take_event(self, answer: Answer, event: dict[str, Any], time_s: float) -> None:
        if "error" in event:
            answer.error = str(event["error"])
            return
        text, num_tokens, finish = _completion_event(event)
        answer.text += text
        answer.token_times_s += [time_s] * num_tokens
        answer.finish_reason = finish or answer.finish_reason
        if timings := event.get("timings"):
            answer.cached_tokens = timings["cache_n"]
            answer.prompt_tokens = timings["prompt_n"] + timings["cache_n"]
            answer.completion_tokens = timings["predicted_n"]
            answer.extra = timings


def _completion_event(event: dict[str, Any]) -> tuple[str, int, str | None]:
    """Text, number of tokens and why it ended, of either endpoint of llama-server."""
    if "choices" not in event:
        reasons = {"eos": "stop", "word": "stop", "limit": "length"}
        return event["content"], len(event.get("tokens", ())), reasons.get(event.get("stop_type"))
    if not event["choices"]:
        return "", 0, None
    (choice,) = event["choices"]
    text = choice["delta"].get("content")
    return text or "", int(text is not None), choice["finish_reason"]


class PythonServerExchange(HttpExchange):
    """`python -m llama_cpp.server`. It knows no `ignore_eos`: the end tokens are biased away."""

    def _body(self, ask: Ask) -> tuple[str, dict[str, Any]]:
        bias = {str(token): NEVER for token in END_TOKENS} if ask.ignore_eos else None
        return "/v1/completions", {
            "prompt": ask.prompt,
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "logit_bias": bias,
            "stream": True,
        }

    def _take_event(self, answer: Answer, event: dict[str, Any], time_s: float) -> None:
        if "choices" not in event:
            answer.error = str(event)
            return
        (choice,) = event["choices"]
        answer.text += choice["text"]
        answer.finish_reason = choice["finish_reason"] or answer.finish_reason
        if choice["finish_reason"] is None:
            answer.token_times_s.append(time_s)
