"""The scenario goes the way that the daemon goes: a change of that way must not leave it behind."""

from __future__ import annotations

import asyncio

from scenarios.admission import RULES, _measure


def test_every_request_is_measured() -> None:
    for rules in ("", RULES):
        times = asyncio.run(_measure(rules, 40))
        assert len(times.cpu_us) == len(times.us) == len(times.token_us) == 40
