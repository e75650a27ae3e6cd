"""Tokens per second over the last ten whole seconds."""

from __future__ import annotations

from openclawd.server.totals import RATE_WINDOW_S, Totals


def test_the_rate_is_of_whole_seconds_only() -> None:
    totals = Totals()
    for second in range(20):
        totals.note_tokens(30, now=100.0 + second)
        totals.note_tokens(20, now=100.5 + second)
    assert totals.tokens_per_s(now=120.0) == 50
    assert totals.tokens_per_s(now=120.9) == 50
    assert totals.completion_tokens == 1000


def test_the_rate_falls_to_nothing_when_idle() -> None:
    totals = Totals()
    totals.note_tokens(100, now=100.0)
    assert totals.tokens_per_s(now=101.0) == 100 / RATE_WINDOW_S
    assert totals.tokens_per_s(now=200.0) == 0
