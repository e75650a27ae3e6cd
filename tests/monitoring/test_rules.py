"""`promtool` on the alert rules, what they fire on, and the scrape configuration."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RULES = ROOT / "etc" / "monitoring" / "openclawd.rules.yml"
CASES = sorted(Path(__file__).parent.glob("*.test.yml"))

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not here: apt-get install prometheus"
)


def promtool(*arguments: object) -> str:
    ended = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@needs_promtool
def test_the_rules_and_the_configuration_are_right():
    assert "SUCCESS" in promtool("check", "rules", RULES)
    assert "SUCCESS" in promtool("check", "config", RULES.with_name("prometheus.yml"))


@needs_promtool
def test_the_alerts_fire_when_they_should():
    assert "FAILED" not in promtool("test", "rules", *CASES)


def test_every_alert_has_a_case():
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    cases = "\n".join(path.read_text() for path in CASES)
    assert alerts == set(re.findall(r'alertname="(\w+)",alertstate="firing"}$', cases, re.M))


def test_every_alert_says_what_to_do():
    for alert in re.split(r"\n      - alert: ", RULES.read_text())[1:]:
        assert re.search(r"severity: (critical|warning)", alert), alert
        assert "summary:" in alert, alert
        assert "description:" in alert, alert
