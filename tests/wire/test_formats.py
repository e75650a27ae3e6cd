"""`format`: what it may be, and what is said about a wrong one."""

import json

import pytest

from openclawctl.wire.errors import InvalidRequest
from openclawctl.wire.formats import MAX_FORMAT_CHARS, OutputFormat
from openclawctl.wire.operations import Op, decode_params


def decoded(value):
    return decode_params(Op.GENERATE, {"prompt": "x", "format": value})[0].format


def test_a_schema_is_a_map_or_its_text_and_its_keys_keep_their_order():
    schema = {"type": "object", "properties": {"zebra": {}, "ape": {"const": "ä"}}}
    asked = decoded({"type": "json_schema", "schema": schema})
    assert asked.type == "json_schema"
    assert list(json.loads(asked.text)["properties"]) == ["zebra", "ape"]
    assert decoded({"type": "json_schema", "schema": asked.text}) == asked


def test_a_schema_may_be_deeper_than_a_frame_when_it_is_text():
    text = '{"items":' * 100 + "{}" + "}" * 100
    assert decoded({"type": "json_schema", "schema": text}).text == text


def test_the_other_kinds():
    assert decoded(None) is None
    assert decoded({"type": "json_object"}) == OutputFormat("json_object")
    assert decoded({"type": "regex", "pattern": "a+"}) == OutputFormat("regex", "a+")
    assert decoded({"type": "lark", "grammar": "g"}) == OutputFormat("lark", "g")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("json", "'format' must be a map, not a string"),
        ({}, "format: 'type' is missing; allowed: json_schema, json_object, regex, lark, gbnf"),
        ({"type": "json"}, "'type' is 'json'; allowed: json_schema"),
        ({"type": "json_schema"}, "'schema' is missing; it must be a JSON schema, a map"),
        ({"type": "json_schema", "schema": "{"}, "'schema' is a text, but not that of a JSON"),
        ({"type": "json_schema", "schema": "[" * 60_000}, "'schema' is a text, but not that"),
        ({"type": "json_schema", "schema": "[1]"}, "'schema' is a text, but not that of a JSON"),
        ({"type": "json_schema", "schema": [1]}, "'schema' must be a map, not a list"),
        ({"type": "json_schema", "schema": {"const": b"x"}}, "binary data or not-a-number"),
        ({"type": "json_schema", "schema": {"const": float("nan")}}, "binary data or not-a-number"),
        ({"type": "json_schema", "schema": {"a": "x" * MAX_FORMAT_CHARS}}, "at most 65536"),
        ({"type": "json_schema", "schema": "x" * (MAX_FORMAT_CHARS + 1)}, "at most 65536"),
        ({"type": "regex"}, "format: 'pattern' is missing"),
        ({"type": "regex", "pattern": "x" * (MAX_FORMAT_CHARS + 1)}, "at most 65536"),
        ({"type": "gbnf", "grammar": 1}, "format: 'grammar' must be a string, not an integer"),
    ],
)
def test_what_is_wrong_is_said(value, reason):
    with pytest.raises(InvalidRequest) as caught:
        decoded(value)
    assert reason in caught.value.message
