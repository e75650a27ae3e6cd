"""A real Prometheus scrapes a real daemon through `openclawd-metrics`, with the shipped rules, and
answers every query of the dashboard."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest
from harness import wait_until
from monitoring.documented import METRICS, ROOT, family
from scrape import get, metrics_socket, parse

from openclawctl import Client

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness import Daemon

ETC = ROOT / "etc" / "monitoring"
JOB = """
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [RULES]
scrape_configs:
  - job_name: openclawd
    static_configs: [{targets: ["127.0.0.1:PORT"]}]
"""
NOT_HERE = re.compile("openclawd_(gpu|budget|cost|speculation|cpu_throttled|prefix_hits|errors)_")
"""Metrics that the shared daemon has none of: no GPU, no budgets, no prices."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


class Prometheus:
    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/"

    def ask(self, path: str, **query: str) -> Any:
        """The data of an answer of its API. Raises `OSError` while it starts."""
        url = f"{self._url}api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as response:
            return json.load(response)["data"]

    def value(self, query: str) -> float | None:
        """The first value, if there is any. Raises `AssertionError` for what is no query."""
        try:
            found = self.ask("query", query=query)["result"]
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.SERVICE_UNAVAILABLE:
                return None  # It listens before it has read its database.
            raise AssertionError(f"{query}: {error.read().decode()}") from None
        except OSError:
            return None
        return float(found[0]["value"][1]) if found else None


@pytest.fixture(scope="module")
def prometheus(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Once it has scraped twice since the daemon served a request."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not here: apt-get install prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    relay_port, port = free_port(), free_port()
    job = JOB.replace("PORT", str(relay_port)).replace("RULES", str(ETC / "openclawd.rules.yml"))
    (folder / "prometheus.yml").write_text(job)
    with Client(daemon.socket) as client:
        client.generate("Hello", max_tokens=8, ignore_eos=True)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("ab"))
        for command in (relay(daemon, relay_port), server(folder, port)):
            process = stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
            stack.callback(process.terminate)
        running = Prometheus(port)
        with Client(daemon.socket) as client:
            client.generate("Hello", max_tokens=8, ignore_eos=True)
        tokens = "count_over_time(openclawd_completion_tokens_total[1m])"
        wait_until(lambda: (running.value(tokens) or 0) >= 2, what="two scrapes")
        yield running


def relay(daemon: Daemon, port: int) -> list[str]:
    program = [sys.executable, "-m", "openclawd.metrics"]
    return [*program, "--socket", str(metrics_socket(daemon)), "--listen", f"127.0.0.1:{port}"]


def server(folder: Path, port: int) -> list[str]:
    return [
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]


def test_promtool_finds_nothing_to_complain_of(daemon: Daemon) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not here: apt-get install prometheus")
    _, text = get(metrics_socket(daemon), "/metrics")
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_every_metric_is_documented_with_its_labels(daemon: Daemon) -> None:
    with Client(daemon.socket) as client:
        client.generate("Hello", max_tokens=2)

    def is_complete() -> bool:
        """An answer may be that of a moment ago, and the first knows none before it."""
        samples = parse(get(metrics_socket(daemon), "/metrics")[1])
        for name, by_labels in samples.items():
            labels = {label for found in by_labels for label, _ in found} - {"le"}
            assert METRICS[family(name)] == labels, name
        missing = METRICS.keys() - {family(name) for name in samples}
        return all(NOT_HERE.match(name) for name in missing)

    wait_until(is_complete, what="every metric that is documented")


def test_every_query_of_the_dashboard_is_answered(prometheus: Prometheus) -> None:
    dashboard = json.loads((ETC / "grafana-dashboard.json").read_text())
    queries = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())
    ]
    assert len(queries) > 50
    for query in queries:
        for variable, value in (
            ("$instance", ".*"),
            ("$model", ".*"),
            ("$__rate_interval", "1m"),
        ):
            query = query.replace(variable, value)
        found = prometheus.value(query)
        assert found is not None or NOT_HERE.search(query), f"nothing: {query}"


def test_the_rules_are_evaluated_and_nothing_is_wrong_here(prometheus: Prometheus) -> None:
    def states() -> dict[str, str]:
        groups = prometheus.ask("rules")["groups"]
        return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}

    wait_until(lambda: set(states().values()) == {"ok"}, what="the rules")
    assert prometheus.value("up") == 1
    assert prometheus.value('ALERTS{alertstate="firing",severity="critical"}') is None
