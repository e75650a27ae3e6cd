"""Prometheus' text format."""

from __future__ import annotations

import math
import re

from hypothesis import given
from hypothesis import strategies as st

from openclawd.observe.exposition import MAX_SERIES, OTHER, Exposition, Tally
from openclawd.observe.histogram import Histogram

LINE = re.compile(r'[a-z_]+(\{[a-z_]+="(?:[^"\\\n]|\\.)*"\})? \S+\n')


def test_a_family():
    text = Exposition()
    text.family("a_total", "counter", "So many.", ("model",), [(("m",), 3), (("n",), 0.5)])
    assert text.encode().decode() == (
        "# HELP a_total So many.\n# TYPE a_total counter\n"
        'a_total{model="m"} 3\na_total{model="n"} 0.5\n'
    )


def test_what_nobody_knows_is_left_out():
    text = Exposition()
    text.gauge("a", "A.", None)
    text.family("b", "gauge", "B.", ("model",), [])
    text.histograms("c", "C.", ("model",), [], bounds=(1.0,))
    assert text.encode() == b""


def test_numbers():
    text = Exposition()
    for value in (True, 2**60, 1e-7, math.inf, -math.inf, math.nan):
        text.gauge("a", "A.", value)
    numbers = re.findall(r"^a (.*)$", text.encode().decode(), re.MULTILINE)
    assert numbers == ["1", str(2**60), "1e-07", "+Inf", "-Inf", "NaN"]


@given(st.text())
def test_no_value_of_a_label_leaves_its_line(value):
    text = Exposition()
    text.family("a", "gauge", "A.", ("model",), [((value,), 1)])
    line = text.encode().decode().split("gauge\n", 1)[1]
    assert LINE.fullmatch(line)


def test_half_a_character_is_no_bug():
    text = Exposition()
    text.family("a", "gauge", "A.", ("model",), [(("\ud800",), 1)])
    assert text.encode().endswith(b'a{model="?"} 1\n')


def test_a_histogram():
    histogram, text = Histogram(), Exposition()
    histogram.observe(0.3)
    text.histograms("t_seconds", "T.", ("model",), [(("m",), histogram)], bounds=(0.2, 1.0))
    assert text.encode().decode() == (
        "# HELP t_seconds T.\n# TYPE t_seconds histogram\n"
        't_seconds_bucket{model="m",le="0.2"} 0\n'
        't_seconds_bucket{model="m",le="1"} 1\n'
        't_seconds_bucket{model="m",le="+Inf"} 1\n'
        't_seconds_sum{model="m"} 0.300000\nt_seconds_count{model="m"} 1\n'
    )


def test_too_many_series_become_one():
    tally = Tally("model")
    for number in range(MAX_SERIES + 10):
        tally.add(str(number))
    tally.add("3")
    samples = dict(tally.samples())
    assert len(samples) == MAX_SERIES + 1
    assert (samples[OTHER,], samples["3",]) == (10, 2)
