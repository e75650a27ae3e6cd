"""Tools and their calls: what they may be, and what is said about wrong ones."""

import pytest

from openclawctl.wire.completion import ChatParams
from openclawctl.wire.errors import InvalidRequest
from openclawctl.wire.formats import MAX_FORMAT_CHARS
from openclawctl.wire.operations import Op, decode_params
from openclawctl.wire.tools import Tool, ToolCall, ToolChoice

USER = {"role": "user", "content": "x"}


def tool(name="f", **function):
    return {"type": "function", "function": {"name": name, **function}}


def decoded(**params) -> ChatParams:
    return decode_params(Op.CHAT, {"messages": [USER], **params})[0]


def test_tools_are_those_of_openai_s_chat_completions():
    parameters = {"type": "object", "properties": {"a": {"type": "string"}}}
    asked = decoded(tools=[tool("f", description="d", parameters=parameters, strict=True)])
    assert asked.tools == [Tool("f", "d", parameters)]
    assert decoded(tools=[{"function": {"name": "a.b-c_1"}}]).tools == [Tool("a.b-c_1")]


def test_the_ways_to_choose():
    tools = [tool("f"), tool("g")]
    assert decoded(tools=tools).tool_choice == ToolChoice()
    assert decoded(tools=tools, tool_choice="none").tool_choice == ToolChoice("none")
    for named in ({"name": "g"}, {"type": "function", "function": {"name": "g"}}):
        assert decoded(tools=tools, tool_choice=named).tool_choice == ToolChoice("required", "g")


def test_a_turn_with_calls_needs_no_content():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    answer = {"role": "tool", "content": "ok", "tool_call_id": "1", "name": "f"}
    _, asked, told = decoded(messages=[USER, turn, answer]).messages
    assert asked.tool_calls == [ToolCall("1", "f", '{"a": 1}')]
    assert asked.content == ""
    assert (told.tool_call_id, told.name) == ("1", "f")


def test_arguments_may_be_a_map_or_absent():
    calls = [
        {"function": {"name": "f", "arguments": {"a": [1, "ä"]}}},
        {"function": {"name": "f"}},
    ]
    (turn,) = decoded(messages=[{"role": "assistant", "tool_calls": calls}]).messages
    assert [call.arguments for call in turn.tool_calls] == ['{"a": [1, "ä"]}', "{}"]
    assert turn.tool_calls[0].parsed == {"a": [1, "ä"]}


@pytest.mark.parametrize("arguments", ["{", "[1]", "7", "[" * 100_000])
def test_arguments_that_are_no_object(arguments):
    assert ToolCall("1", "f", arguments).parsed is None


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"tools": {}}, "'tools' must be a list, not a map"),
        ({"tools": [1]}, "tools[0] must be a map, not an integer"),
        ({"tools": [{"type": "code"}]}, "tools[0]: 'type' is 'code'; allowed: function"),
        ({"tools": [{}]}, "function: 'name' is missing"),
        ({"tools": [tool("a b")]}, "'name' must have 1 to 64 letters, digits, '_', '.' or '-'"),
        ({"tools": [tool("x" * 65)]}, "'name' must have 1 to 64"),
        ({"tools": [tool(description=1)]}, "'description' must be a string"),
        ({"tools": [tool(parameters=[])]}, "'parameters' must be a map, not a list"),
        ({"tools": [tool(parameters={"a": b""})]}, "'parameters' holds what JSON cannot"),
        (
            {"tools": [tool(parameters={"a": "x" * MAX_FORMAT_CHARS})]},
            "characters as JSON; at most 65536",
        ),
        ({"tools": [tool("f"), tool("f")]}, "two of the 'tools' have the same name"),
        ({"tools": [tool(f"f{n}") for n in range(129)]}, "'tools' has 129 items; at most 128"),
        ({"tool_choice": "maybe"}, "'tool_choice' is 'maybe'; allowed: auto, none, required"),
        ({"tool_choice": 1}, "'tool_choice' must be a string, not an integer"),
        ({"tool_choice": {}}, "tool_choice: 'name' is missing"),
        ({"tool_choice": "required"}, "'tool_choice' is required, but there are no 'tools'"),
        (
            {"tools": [tool("forecast")], "tool_choice": {"name": "forcast"}},
            (
                "'tool_choice' names 'forcast', which is none of the 'tools'; "
                "did you mean 'forecast'?"
            ),
        ),
        (
            {"tools": [tool()], "format": {"type": "json_object"}},
            "'format' and 'tools' exclude each other",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]},
            "function: 'name' is missing",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": []}]}, "'content' is missing"),
    ],
)
def test_what_is_wrong_is_said(params, reason):
    with pytest.raises(InvalidRequest) as caught:
        decoded(**params)
    assert reason in caught.value.message


def test_a_format_is_fine_where_no_tool_may_be_called():
    params = {"tools": [tool()], "tool_choice": "none", "format": {"type": "json_object"}}
    assert decoded(**params).format is not None
