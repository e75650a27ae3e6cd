"""What is made of the measurements: percentiles, targets, tables, plots."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from measure import Plot, Target, number, percentile, ratios, spread
from plot import svg
from prompts import WORDS, Prompts
from publish import markdown, targets


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(value) for value in range(1, 101)]
    assert percentile(values, 0.99) == 99
    assert percentile(values, 0.5) == 50
    assert percentile([3.0], 0.99) == 3


@pytest.mark.parametrize(
    ("limits", "verdict"),
    [({"at_least": 2.0}, "PASS"), ({"at_least": 2.1}, "MISS"), ({"at_most": 1.9}, "MISS")],
)
def test_a_target_is_judged_by_the_median_of_the_rounds(
    limits: dict[str, float], verdict: str
) -> None:
    target = Target.of_rounds("speed", ratios([2.0, 4.0, 9.0], [1.0, 4.0, 3.0]), **limits)
    assert target.value == 2.0
    assert target.spread == "1 to 3"
    assert target.as_dict()["result"] == verdict
    (row,) = targets({"streams": {"targets": [target.as_dict()]}, "failed": {"error": "no"}})
    assert row["result"] == verdict


def test_numbers_have_as_many_digits_as_say_something() -> None:
    assert [number(value) for value in (1234.5, 12.345, 0.012345)] == ["1,234", "12.3", "0.0123"]
    assert spread([2.0, 1.0]) == "1 to 2"


def test_a_table_in_markdown() -> None:
    rows = [{"what": "a", "ms": 1.234}, {"what": "b", "ms": 20.0}]
    assert markdown(rows).splitlines() == [
        "| what | ms |",
        "| --- | --: |",
        "| a | 1.23 |",
        "| b | 20.0 |",
    ]


def test_a_plot_has_a_bar_for_each_group_of_samples() -> None:
    plot = Plot("a < b", "s", ["one", "two"], {"ours": [[1.0, 3.0], [2.0]], "peer": [None, [0.0]]})
    picture = ElementTree.fromstring(svg(plot.as_dict()))
    rectangles = picture.findall("{http://www.w3.org/2000/svg}rect")
    assert len(rectangles) == 2 + 3  # the legend's and the bars
    assert all(float(each.attrib["height"]) >= 0 for each in rectangles)


def test_prompts_have_their_length_and_share_one_word_at_most() -> None:
    texts = Prompts().several(2 * len(WORDS), 5)
    assert {len(text.split()) for text in texts} == {5}
    assert len({tuple(text.split()[:2]) for text in texts}) == len(texts)
