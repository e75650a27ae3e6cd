"""Tokens a second."""

from __future__ import annotations

import pytest

from openclawd.fleet.tempo import SPAN_S, Tempo


def test_a_steady_stream_has_its_rate() -> None:
    tempo = Tempo()
    for step in range(1000):
        tempo.note(2, now=step * 0.02)
    assert tempo.per_second(now=20.0) == pytest.approx(100, rel=0.15)


def test_what_is_long_ago_does_not_count() -> None:
    tempo = Tempo()
    tempo.note(1000, now=0.0)
    assert tempo.per_second(now=1.0) == 1000 / SPAN_S
    assert tempo.per_second(now=SPAN_S + 1.0) == 0
