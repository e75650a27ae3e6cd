"""A chat with a tool through the client library: asked, called, answered."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from harness import running_daemon

from openclawctl import AsyncClient, Client, ToolCall, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Daemon
    from models.library import ModelLibrary

    from openclawctl import Completion

TEMPLATE = (
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {
                "first": {"type": "integer", "minimum": 0, "maximum": 99},
                "second": {"type": "integer", "minimum": 0, "maximum": 99},
            },
            "required": ["first", "second"],
        },
    },
}
MESSAGES = [{"role": "user", "content": "What is 12 + 30?"}]


@pytest.fixture(scope="module")
def caller(models: ModelLibrary) -> Iterator[Daemon]:
    path = models.smollm2_with("adds", {"tokenizer.chat_template": TEMPLATE})
    with running_daemon("--models", f"adds={path}") as daemon:
        yield daemon.wait_ready()


def test_a_tool_is_called_and_its_result_sent_back(caller: Daemon) -> None:
    with Client(caller.socket) as client:
        options = {"tools": [ADD], "seed": 1, "max_tokens": 100}
        with client.chat(MESSAGES, stream=True, tool_choice="required", **options) as stream:
            deltas = list(stream)
        asked = stream.result
        (call,) = asked.tool_calls
        assert [each for delta in deltas for each in delta.tool_calls or []] == [call]
        assert isinstance(call, ToolCall)
        assert call.name == "add"
        assert (asked.text, asked.finish_reason) == ("", "stop")
        total = call.parsed["first"] + call.parsed["second"]
        answer = {"role": "tool", "tool_call_id": call.id, "content": str(total)}
        told = client.chat([*MESSAGES, asked.message, answer], **options)
        assert told.usage.prompt_tokens > asked.usage.prompt_tokens


def test_without_a_stream_and_without_blocking(caller: Daemon) -> None:
    async def ask() -> Completion:
        async with AsyncClient(caller.socket) as client:
            return await client.chat(MESSAGES, tools=[ADD], tool_choice={"name": "add"}, seed=2)

    answer = asyncio.run(ask())
    assert answer.message["tool_calls"][0]["function"]["name"] == "add"
    assert answer.tool_calls[0].parsed is not None


def test_a_model_that_cannot_call_tools_says_so(daemon: Daemon) -> None:
    with (
        Client(daemon.socket) as client,
        pytest.raises(Unsupported, match="does not tell it of tools"),
    ):
        client.chat(MESSAGES, tools=[ADD])
