"""The rules and the dashboard ask for metrics that exist, and the dashboard for nearly all."""

from __future__ import annotations

import json
import re

import pytest
from monitoring.documented import METRICS, ROOT, family

ETC = ROOT / "etc" / "monitoring"
OURS = re.compile(r"\b(?:openclawd|process)_[a-z0-9_]+")

FOR_OTHERS = {
    "openclawd_server_state",
    "openclawd_build_info",
    "openclawd_connections_limit",
    "openclawd_ledger_writable",
    "openclawd_model_loads_total",
    "openclawd_kv_cache_used_tokens",
    "openclawd_budget_limit",
    "openclawd_budget_used",
    "openclawd_budget_buckets",
    "openclawd_memory_limit_bytes",
    "openclawd_scrape_seconds",
    "process_virtual_memory_bytes",
    "process_start_time_seconds",
    "process_max_fds",
}
"""What no panel shows."""


def named_in(file: str) -> set[str]:
    return {family(name) for name in OURS.findall((ETC / file).read_text())}


@pytest.mark.parametrize("file", ["openclawd.rules.yml", "grafana-dashboard.json"])
def test_what_is_asked_for_exists(file):
    assert named_in(file) <= METRICS.keys()


def test_the_dashboard_shows_nearly_all_of_them():
    shown = named_in("grafana-dashboard.json")
    assert METRICS.keys() - shown == FOR_OTHERS - shown


def test_the_panels_of_the_dashboard():
    dashboard = json.loads((ETC / "grafana-dashboard.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        rows = range(place["y"], place["y"] + place["h"])
        cells = {(x, y) for x in columns for y in rows}
        assert not cells & taken, f"{panel['title']} covers another panel"
        assert columns.stop <= 24
        taken |= cells
