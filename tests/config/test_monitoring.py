"""What may stand under `monitoring`."""

from __future__ import annotations

from pathlib import Path

import pytest

from openclawd.config import ConfigError, load_config
from openclawd.config.places import find_places


@pytest.fixture
def load(tmp_path):
    def load(section):
        (tmp_path / "c.yaml").write_text(f"monitoring: {section}\n")
        return load_config(tmp_path / "c.yaml").monitoring

    return load


def test_what_is_left_out(load):
    found = load("")
    assert (found.metrics, found.socket) == (True, None)
    assert found.memory_warning == 0.9


def test_all_of_it(load):
    found = load("{metrics: false, socket: /run/m, memory_warning: 0.75}")
    assert (found.metrics, found.socket) == (False, "/run/m")
    assert found.memory_warning == 0.75


@pytest.mark.parametrize(
    "section",
    ["{metrics: 1}", "{socket: here}", "{memory_warning: 0}", "{port: 1}"],
)
def test_what_may_not_stand_there(load, section):
    with pytest.raises(ConfigError, match=r"allowed: |unknown key"):
        load(section)


def test_each_daemon_has_a_metrics_socket_of_its_own():
    places = [
        find_places({}, is_root=True, socket=Path(f"/run/openclawd/{name}.sock"))
        for name in ("openclawd", "fast")
    ]
    assert [place.metrics_socket.name for place in places] == [
        "openclawd-metrics.sock",
        "fast-metrics.sock",
    ]
