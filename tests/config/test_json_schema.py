"""The JSON Schema of the configuration: complete, and it refuses nothing that the parser takes."""

from __future__ import annotations

import re
from pathlib import Path

import jsonschema
import pytest
from config.test_effective import TEXT, examples, openclawd

from openclawd.config.json_schema import json_schema
from openclawd.config.reference import all_keys, keys_of, sections
from openclawd.config.schema import Config
from openclawd.config.source import read_source

SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
SHIPPED = (Path(__file__).parents[2] / "etc" / "openclawd.yaml").read_text()


def mistake(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    data = read_source(tmp_path / "c.yaml").data
    found = jsonschema.exceptions.best_match(VALIDATOR.iter_errors(data))
    return None if found is None else found.json_path


def test_it_is_json_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("text", [*examples(), SHIPPED, re.sub("(?m)^#(?!#)", "", SHIPPED)])
def test_it_takes_what_the_parser_takes(tmp_path, text):
    assert mistake(tmp_path, text) is None


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("modles: {}", "$"),
        ("models: {a: {path: x, parallel: many}}", "$.models.a.parallel"),
        ("models: {a: {path: x, parallel: 0}}", "$.models.a.parallel"),
        ("models: {a: {}}", "$.models.a"),
        ("logging: {level: loud}", "$.logging.level"),
        ("budgets: [{name: a, per: nobody}]", "$.budgets[0].per"),
    ],
)
def test_it_finds_mistake(tmp_path, text, path):
    assert mistake(tmp_path, text) == path


def test_every_key_has_the_words_of_the_documentation():
    words = {}
    for section in sections():
        schema = SCHEMA if section is Config else SCHEMA["$defs"][section.__name__]
        assert set(schema["properties"]) == set(keys_of(section))
        for name, found in schema["properties"].items():
            words.setdefault(name, set()).add(found["description"])
    for info in all_keys():
        text = f"{info.meaning} Allowed: {info.allowed}. Default: {info.default}."
        assert text in words[info.path.rpartition(".")[2]], info.path


def test_the_program():
    assert openclawd("--config-schema").stdout.startswith('{\n  "$schema"')
    assert TEXT  # the same examples as of the listing
