"""Answers of a given shape from a real worker, and formats that cannot be followed."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from openclawd.worker.messages import Start

if TYPE_CHECKING:
    from worker.driver import WorkerProcess

SCHEMAS = sorted((Path(__file__).parents[2] / "bench" / "schemas").glob("*.json"))
"""Bounded, so that every answer ends by itself; the benchmark runs each with 20 seeds."""

SEEDS = (1, 2, 3)
ANSWER_TOKENS = 400


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_every_answer_is_valid_for_its_schema(warm_worker: WorkerProcess, path: Path) -> None:
    schema = json.loads(path.read_text())
    assert len(SCHEMAS) == 5
    wanted = {"type": "json_schema", "schema": schema}
    rids = []
    for seed in SEEDS:
        sampling = {"seed": seed, "temperature": 1.0}
        rid = warm_worker.prepare("generate", prompt=schema["description"], format=wanted)
        warm_worker.send(Start(rid, ANSWER_TOKENS, sampling))
        rids.append(rid)
    for outcome in warm_worker.finish(*rids):
        assert outcome.end.finish_reasons == ["stop"]
        # Decimals: as binary fractions, 22.2 is no multiple of 0.1.
        value, wanted = (
            json.loads(text, parse_float=Decimal) for text in (outcome.text, json.dumps(schema))
        )
        jsonschema.validate(value, wanted, format_checker=jsonschema.FormatChecker())


SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "regex": ({"type": "regex", "pattern": "(red|green)/[0-9]{3}\n"}, "(red|green)/[0-9]{3}\n"),
    "lark": ({"type": "lark", "grammar": 'start: "<" /[a-c]{2}/ ">"'}, "<[a-c]{2}>"),
    "gbnf": (
        {
            "type": "gbnf",
            "grammar": 'root ::= word ("-" word){1,2} # so\nword ::= "\\u00e9" [\\u0061-c]',
        },
        "é[a-c](-é[a-c]){1,2}",
    ),
    "schema as text": (
        {
            "type": "json_schema",
            "schema": '{"type": "array", "items": {"const": 7}, "maxItems": 3}',
        },
        r"\[\s*(7(,\s*7){0,2})?\s*\]",
    ),
    "no whitespace": (
        {
            "type": "json_schema",
            "schema": {
                "type": "array",
                "prefixItems": [{"const": 1}, {"const": 2}],
                "items": False,
                "minItems": 2,
                "x-guidance": {"whitespace_flexible": False},
            },
        },
        r"\[1,2\]",
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_kind_of_format(warm_worker: WorkerProcess, name: str) -> None:
    wanted, pattern = SHAPES[name]
    sampling = {"temperature": 1.0, "seed": 3}
    outcome = warm_worker.run(
        "generate", prompt="So", format=wanted, max_tokens=100, sampling=sampling
    )
    assert outcome.end.finish_reasons == ["stop"]
    assert re.fullmatch(pattern, outcome.text)


def test_any_json_object(warm_worker: WorkerProcess) -> None:
    """Nothing bounds it, so it may be cut off; what there is begins an object."""
    chat = [{"role": "user", "content": "Give me a JSON object with one short key."}]
    outcome = warm_worker.run("chat", messages=chat, format={"type": "json_object"}, max_tokens=40)
    if outcome.end.finish_reasons == ["stop"]:
        assert isinstance(json.loads(outcome.text), dict)
    assert outcome.text.startswith("{")


def test_a_choice_of_thousands(warm_worker: WorkerProcess) -> None:
    values = [f"{n * 7919 % 99_991} x" for n in range(4000)]
    wanted = {"type": "json_schema", "schema": {"enum": values}}
    outcome = warm_worker.run("generate", prompt="So", format=wanted, sampling={"temperature": 1})
    assert json.loads(outcome.text) in values


def test_what_cuts_an_answer_off_still_does(warm_worker: WorkerProcess) -> None:
    wanted = {"type": "regex", "pattern": "aaaa bbbb"}
    cut = warm_worker.run("generate", prompt="So", format=wanted, max_tokens=1)
    assert cut.end.finish_reasons == ["length"]
    stopped = warm_worker.run("generate", prompt="So", format=wanted, stop=[" b"])
    assert (stopped.text, stopped.end.finish_reasons) == ("aaaa", ["stop"])


def deep(num_levels: int) -> str:
    return '{"items":' * num_levels + "{}" + "}" * num_levels


def properties(number: int) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {f"p{each}": {"type": "string"} for each in range(number)},
    }


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no schema": (
        {"type": "json_schema", "schema": {"type": "objekt"}},
        "invalid-request",
        "objekt",
    ),
    "not built": (
        {"type": "json_schema", "schema": {"type": "array", "uniqueItems": True}},
        "invalid-request",
        "uniqueItems",
    ),
    "unsatisfiable": (
        {"type": "json_schema", "schema": {"type": "integer", "minimum": 5, "maximum": 3}},
        "invalid-request",
        "minimum (5) is greater than maximum (3)",
    ),
    "remote": (
        {"type": "json_schema", "schema": {"$ref": "http://example.com/x.json"}},
        "invalid-request",
        "does not fetch",
    ),
    "regex": ({"type": "regex", "pattern": "a("}, "invalid-request", "unclosed group"),
    "look-ahead": ({"type": "regex", "pattern": "(?=a)b"}, "invalid-request", "look-around"),
    "no text": ({"type": "regex", "pattern": r"[^\s\S]"}, "invalid-request", "no text follows it"),
    "lark": ({"type": "lark", "grammar": "start: b"}, "invalid-request", 'unknown name: "b"'),
    "gbnf": ({"type": "gbnf", "grammar": "root ::= x"}, "invalid-request", "Rule 'x' not found"),
    "deep gbnf": (
        {"type": "gbnf", "grammar": f'root ::= {"(" * 5000}"a"{")" * 5000}'},
        "invalid-request",
        "nested too deeply",
    ),
    "long gbnf": (
        {"type": "gbnf", "grammar": 'root ::= "a"\n' + 'x ::= "y"\n' * 1000},
        "limit-exceeded",
        "1001 rules of GBNF; at most 1000",
    ),
    "deep lark": (
        {"type": "lark", "grammar": f'start: {"(" * 20_000}"a"{")" * 20_000}'},
        "invalid-request",
        "too deeply nested",
    ),
    "deep schema": ({"type": "json_schema", "schema": deep(500)}, "invalid-request", "recursion"),
    "many optional properties": (
        {"type": "json_schema", "schema": properties(300)},
        "invalid-request",
        "leaves too many ways to go on",
    ),
    "multiples": (
        {"type": "json_schema", "schema": {"multipleOf": 997, "items": {"multipleOf": 1009}}},
        "limit-exceeded",
        "product 1005973; at most 100000",
    ),
    "hidden multiples": (
        {"type": "lark", "grammar": 'start: %json {"multipl\\u0065Of": 1000003}'},
        "limit-exceeded",
        "product 1000003",
    ),
    "more multiples than can be written": (
        {
            "type": "json_schema",
            "schema": {"anyOf": [{"multipleOf": 10**17 + n} for n in range(400)]},
        },
        "limit-exceeded",
        "product of more than 1000000000000; at most 100000",
    ),
    "no number": (
        {"type": "lark", "grammar": 'start: %json {"multipleOf": 1e999999999}'},
        "invalid-request",
        "number out of range",
    ),
    "counted groups": (
        {"type": "regex", "pattern": "((a{1,1000}){1,1000}){1,1000}" * 50},
        "invalid-request",
        "too",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused_with_the_reason(
    warm_worker: WorkerProcess, name: str
) -> None:
    wanted, code, reason = REFUSED[name]
    error = warm_worker.refusal("generate", prompt="x", format=wanted)
    assert error["code"] == code
    assert reason in error["message"]
    assert error["message"].startswith("'format' ")
    assert len(error["message"]) < 500


def test_a_grammar_that_becomes_too_complex_ends_its_request_alone(
    warm_worker: WorkerProcess,
) -> None:
    """Ambiguous: each letter doubles the ways in which the text can be read."""
    ambiguous = {"type": "lark", "grammar": 'start: a*\na: "x"* | b\nb: a b | "x"'}
    bias = {"logit_bias": [[88, 50.0]]}
    bad = warm_worker.prepare("generate", prompt="x", format=ambiguous)
    good = warm_worker.prepare("generate", prompt="The capital of France is")
    warm_worker.send(Start(bad, 500, {"temperature": 0, "seed": 1, **bias}))
    warm_worker.send(Start(good, 8, {"temperature": 0, "seed": 1}))
    first, second = warm_worker.finish(bad, good)
    assert first.end.finish_reasons == ["error"]
    assert first.end.to_problem().code == "model-failed"
    assert "cannot follow its grammar" in first.end.to_problem().message
    assert first.end.completion_tokens == len(first.token_ids[0])
    assert second.text.startswith(" Paris")
