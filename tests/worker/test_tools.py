"""Tools with a real model: SmolLM2 with a template that knows of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from harness import short_folder
from worker.driver import GREEDY, running_worker

from openclawd.worker.messages import Continuation, Loaded, Start

if TYPE_CHECKING:
    from collections.abc import Iterator

    from models.library import ModelLibrary
    from worker.driver import Outcome, WorkerProcess

    from openclawctl.wire.tools import ToolCall

HEAD = (
    "{% if tools %}<|im_start|>system\nTools:{% for t in tools %}\n{{ t | tojson }}{% endfor %}"
    "<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
)
TAIL = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
HERMES = (
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}"
)
CODER = (
    "{% for c in m.tool_calls or [] %}<tool_call>\n<function={{ c.function.name }}>\n"
    "{% for k, v in c.function.arguments.items() %}<parameter={{ k }}>\n"
    "{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>"
    "{% endfor %}"
)
CONTROL = (
    "{% for c in m.tool_calls or [] %}<issue_start>{{ c.function.name }}<issue_comment>"
    "{{ c.function.arguments | tojson }}{% endfor %}"
)
"""With control tokens of SmolLM2, as Mistral has some of its own."""

THINKS = "{# </think> #}{% if add_generation_prompt %}<think>\n{% endif %}"

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 12},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
                "unit": {"type": "string", "enum": ["C", "F"]},
            },
            "required": ["city", "days"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock.now"}}
CHAT = [{"role": "user", "content": "What is the weather in Rome?"}]


@pytest.fixture(scope="module", params=["hermes", "coder", "control"])
def caller(models: ModelLibrary, request: pytest.FixtureRequest) -> Iterator[WorkerProcess]:
    """SmolLM2 with a template that writes calls in one way or another."""
    style = {"hermes": HERMES, "coder": CODER, "control": CONTROL}[request.param]
    yield from worker_with(models, request.param, HEAD + style + TAIL)


@pytest.fixture(scope="module")
def thinker(models: ModelLibrary) -> Iterator[WorkerProcess]:
    yield from worker_with(models, "thinking-caller", HEAD + HERMES + TAIL + THINKS)


def worker_with(models: ModelLibrary, name: str, template: str) -> Iterator[WorkerProcess]:
    path = models.smollm2_with(f"calls-{name}", {"tokenizer.chat_template": template})
    with short_folder() as folder, running_worker(folder) as worker:
        assert isinstance(worker.load(path), Loaded)
        yield worker


def calls_in(outcome: Outcome) -> list[ToolCall]:
    outputs = (output for step in outcome.steps for output in step.outputs)
    return [call for output in outputs for call in output.tool_calls]


def ask(worker: WorkerProcess, *tools: dict[str, Any], seed: int = 1, **params: Any) -> Outcome:
    sampling = {"temperature": 1.0, "seed": seed}
    return worker.run(
        "chat", max_tokens=150, sampling=sampling, messages=CHAT, tools=list(tools), **params
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_call_that_must_come_comes_with_valid_arguments(caller: WorkerProcess, seed: int) -> None:
    outcome = ask(caller, WEATHER, CLOCK, tool_choice="required", seed=seed)
    (call,) = calls_in(outcome)
    assert outcome.text == ""
    assert outcome.end.finish_reasons == ["stop"]
    assert len(call.id) == 9
    if call.name == "get_weather":
        jsonschema.validate(call.parsed, WEATHER["function"]["parameters"])
    else:
        assert (call.name, call.parsed) == ("clock.now", {})


@pytest.mark.parametrize("name", ["get_weather", "clock.now"])
def test_the_tool_that_must_be_called_is_called(caller: WorkerProcess, name: str) -> None:
    (call,) = calls_in(ask(caller, WEATHER, CLOCK, tool_choice={"name": name}))
    assert call.name == name


def test_the_model_sees_the_tools_unless_it_may_not_call_them(caller: WorkerProcess) -> None:
    def num_prompt_tokens(**params: Any) -> int:
        rid = caller.prepare("chat", messages=CHAT, **params)
        caller.send(Start(rid, 1, GREEDY))
        return caller.finish(rid)[0].end.prompt_tokens

    with_tools = num_prompt_tokens(tools=[WEATHER])
    assert with_tools > num_prompt_tokens() + 20
    assert num_prompt_tokens(tools=[WEATHER], tool_choice="none") == num_prompt_tokens()


def test_calls_and_results_can_be_sent_back(caller: WorkerProcess) -> None:
    call = {"name": "get_weather", "arguments": '{"city": "Rome", "days": 2}'}
    messages = [
        *CHAT,
        {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "a", "content": "Sunny."},
    ]
    for tools in ([WEATHER], []):
        outcome = caller.run("chat", messages=messages, tools=tools, max_tokens=4)
        assert outcome.end.error is None
    call["arguments"] = "{"
    error = caller.refusal("chat", messages=messages)
    assert error["code"] == "invalid-request"
    assert "arguments of a call of get_weather" in error["message"]


def test_a_schema_that_cannot_be_followed_is_refused_where_it_must_be(
    caller: WorkerProcess,
) -> None:
    parameters = {"type": "object", "properties": {"a": {"uniqueItems": True}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    caller.prepare("chat", messages=CHAT, tools=[tool])
    error = caller.refusal("chat", messages=CHAT, tools=[tool], tool_choice="required")
    assert error["code"] == "invalid-request"
    assert error["message"].startswith("'tools' cannot be followed: ")
    parameters["properties"] = {"a": {"multipleOf": 1_000_003}}
    error = caller.refusal("chat", messages=CHAT, tools=[tool], tool_choice="required")
    assert error["message"].startswith("'tools' is too complex: ")


def go_on(worker: WorkerProcess, told: list[int], **params: Any) -> Outcome:
    """What comes after tokens that another worker had told already."""
    rid = worker.prepare("chat", messages=CHAT, **params)
    part = Continuation.of(0, cached_tokens=0, token_ids=told, mu=None)
    worker.send(Start(rid, 150, {"temperature": 1.0, "seed": 1}, continuation=[part]))
    return worker.finish(rid)[0]


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9])
def test_a_call_that_another_worker_had_begun_is_finished(
    caller: WorkerProcess, cut: float
) -> None:
    choice = {"tool_choice": {"name": "get_weather"}}
    whole = ask(caller, WEATHER, **choice)
    tokens = whole.token_ids[0]
    told = tokens[: round(cut * len(tokens))]
    rest = go_on(caller, told, tools=[WEATHER], **choice)
    assert rest.text == ""
    (call,) = calls_in(rest)
    jsonschema.validate(call.parsed, WEATHER["function"]["parameters"])


def test_a_call_may_come_after_words_and_reasoning(thinker: WorkerProcess) -> None:
    text = 'I must look.\n</think>\n\nI look:\n<tool_call>\n{"name": "clock.now", "argum'
    told = thinker.answer("tokenize", text=text)["tokens"]
    wanted = {"type": "regex", "pattern": "yes|no"}
    error = thinker.refusal("chat", messages=CHAT, tools=[CLOCK], format=wanted)
    assert error["code"] == "invalid-request"
    assert "'format' and 'tools' exclude each other" in error["message"]
    bias = [[token, 100.0] for token in thinker.answer("tokenize", text='ents": {}}')["tokens"][:1]]
    rid = thinker.prepare("chat", messages=CHAT, tools=[CLOCK])
    part = Continuation.of(0, cached_tokens=0, token_ids=told, mu=None)
    sampling = {**GREEDY, "logit_bias": bias}
    thinker.send(Start(rid, len(told) + 1, sampling, continuation=[part]))
    (outcome,) = thinker.finish(rid)
    assert outcome.text == '\n<tool_call>\n{"name": "clock.now", "arguments'
    assert outcome.reasoning == ""
    assert calls_in(outcome) == []


def test_a_call_that_must_come_may_be_thought_about(thinker: WorkerProcess) -> None:
    told = thinker.answer("tokenize", text="I must look.\n</think>\n")["tokens"]
    params = {"tools": [WEATHER], "tool_choice": "required"}
    (call,) = calls_in(go_on(thinker, told, **params))
    assert call.name == "get_weather"


def test_a_model_that_cannot_says_why(warm_worker: WorkerProcess) -> None:
    error = warm_worker.refusal("chat", messages=CHAT, tools=[WEATHER])
    assert error["code"] == "unsupported"
    assert error["message"].startswith("this model cannot call tools: its chat template does not")
    assert warm_worker.run("chat", messages=CHAT, tools=[WEATHER], tool_choice="none").text
