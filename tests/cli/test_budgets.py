"""`openclawctl budgets`: one line for each measure of each bucket."""

import json
import time

import pytest

ROW = {
    "name": "research",
    "per": "all",
    "bucket": "",
    "window": "month",
    "time_zone": "Europe/Berlin",
    "resets_at": 1_790_805_600,
    "tokens": {
        "limit": 1000,
        "used": 600,
        "reserved": 50,
        "left": 350,
        "forecast": 2000,
        "used_up_at": 1_790_600_000,
    },
}
EVER = {
    "name": "ever",
    "per": "app",
    "bucket": "web",
    "window": "lifetime",
    "time_zone": "UTC",
    "resets_at": None,
    "tokens": {"limit": 9, "used": 0, "reserved": 0, "left": 9, "forecast": None},
    "money": {"limit": 12_500_000, "used": 100_000, "reserved": 0, "left": 12_400_000},
}


@pytest.fixture
def daemon(peer):
    """Answers with these rows."""

    def start(*rows):
        peer(handler=lambda connection, request: connection.done(request, budgets=list(rows)))

    return start


@pytest.fixture
def _utc(monkeypatch):
    """The reader's time zone."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("_utc")
def test_a_table(daemon, ctl):
    daemon(ROW, EVER)
    forecast = "2000, used up 2026-09-28 12:53"
    assert ctl("budgets").out.splitlines() == [
        "NAME          FOR        USED  RESERVED   LEFT  LIMIT  RESETS            FORECAST",
        f"research      everybody   600        50    350   1000  2026-09-30 22:00  {forecast}",
        "ever          web           0         0      9      9  never             -",
        "ever (money)  web        0.10      0.00  12.40  12.50  never             -",
    ]


def test_whom_it_concerns(daemon, ctl):
    daemon({**ROW, "match": {"key": ["shop", "web*"], "model": ["m"]}})
    assert "research  key shop|web*, model m   600" in ctl("budgets").out


def test_json_has_the_rows(daemon, ctl):
    daemon(ROW)
    assert json.loads(ctl("budgets", "--json").out) == {"budgets": [ROW]}


def test_no_budgets(daemon, ctl):
    daemon()
    assert ctl("budgets").out == "no budgets\n"


def test_whoami_writes_money_as_money(peer, ctl):
    me = {"principal": "user:alice", "left": {"budgets": [ROW, EVER]}}
    peer(handler=lambda connection, request: connection.done(request, **me))
    lines = ctl("whoami").out.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("left")] == [
        "research: 350 of 1000 tokens",
        "ever: 9 of 9 tokens",
        "ever: 12.40 of 12.50 money",
    ]
