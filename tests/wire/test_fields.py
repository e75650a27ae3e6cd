"""What only callers of the getters see; the rest is tested through messages and operations."""

import pytest

from openclawctl.wire.fields import Fields, suggestion, texts_in


def fields(**values):
    return Fields(values, where="here", error=ValueError)


def test_nil_is_no_value():
    assert not fields(a=None).has("a")
    assert fields(a=None).boolean("a", default=True) is True
    assert fields(a=None).mapping("a") == {}
    assert fields(a=None).choice("a", ["x"], default="x") == "x"


def test_odd_types_are_named():
    with pytest.raises(ValueError, match="here: 'a' must be a string, not set"):
        fields(a=set()).text("a")


def test_a_callers_own_judgement():
    assert str(fields().fail("too odd")) == "here: too odd"


def test_suggestions():
    assert suggestion("modle", ["model", "op"]) == "; did you mean 'model'?"
    assert suggestion("zzz", ["model", "op"]) == ""


def test_a_very_long_text_is_not_compared():
    """Comparing 16 MiB with anything takes seconds and hundreds of megabytes."""
    assert suggestion("model" * 100, ["model" * 100]) == ""


def test_every_text_of_a_value_is_found():
    value = {"a": ["b", 1, None, {"c": "d"}], "e": 2.5, "f": {"g": ["h"]}}
    assert [*texts_in(value)] == ["a", "b", "c", "d", "e", "f", "g", "h"]
