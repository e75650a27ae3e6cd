"""What holds, and where it is from; and that the listing is a configuration again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from openclawd.config import Config, load_config
from openclawd.config.effective import DEFAULT, Effective, Override, listing
from openclawd.config.reference import all_keys
from openclawd.config.source import Source, read_source

ROOT = Path(__file__).parents[2]
TEXT = """\
models:
  a:
    path: /m/a.gguf
    keep_alive: forever
    adapters: {formal: /m/l.gguf, terse: {path: /m/t.gguf, scale: 2}}
    inference_settings: {top_k: 7}
  b: {path: /m/b.gguf, prefix_sharing: off}
inference_settings: {temperature: 0.3}
budgets:
- name: team
  money: "12.50"
  match: {principal: ["user:alice"]}
resource_limits: {memory: 4GiB}
security:
"""


@pytest.fixture
def effective(tmp_path):
    def effective(text=TEXT, overrides=None):
        file = tmp_path / "openclawd.yaml"
        file.write_text(text)
        return Effective(load_config(file), read_source(file), overrides or {})

    return effective


def rows(effective):
    return {row["key"]: row for row in (s.as_dict() for s in effective.settings())}


def test_where_values_are_from(effective, tmp_path):
    found = rows(effective())
    file = f"{tmp_path}/openclawd.yaml"
    for key, value, line in [
        ("models.a.path", "/m/a.gguf", 3),
        ("models.a.keep_alive", "forever", 4),
        ("models.a.adapters.formal.path", "/m/l.gguf", 5),
        ("models.a.adapters.terse.scale", "2", 5),
        ("models.b.prefix_sharing", "false", 7),
        ("budgets[0].money", "'12.50'", 11),
        ("budgets[0].match.principal", "['user:alice']", 12),
        ("resource_limits.memory", "4GiB", 13),
    ]:
        assert found[key] == {
            "key": key, "value": value, "set": True, "origin": f"{file}:{line}"
        }  # fmt: skip
    for key, value in [("models.b.keep_alive", "5m"), ("logging.level", "info")]:
        assert found[key]["value"].startswith(value)
        assert (found[key]["set"], found[key]["origin"]) == (False, DEFAULT)


def test_a_model_inherits_the_daemons_settings(effective, tmp_path):
    found = rows(effective())
    inherited = found["models.a.inference_settings.temperature"]
    assert inherited["value"] == "0.3"
    assert inherited["origin"] == f"{tmp_path}/openclawd.yaml:8, for all models"
    assert found["models.a.inference_settings.top_k"]["value"] == "7"
    assert found["models.a.inference_settings.top_p"]["origin"] == DEFAULT


def test_every_key_is_listed(effective):
    found = {re.sub(r"\[\d+\]", "", key) for key in rows(effective())}
    for info in all_keys():
        if "NAME" not in info.path:
            assert info.path in found, info.path


def test_options_are_above_the_file(effective):
    overrides = {
        ("models", "*", "workers"): Override(3, "--workers"),
        ("logging", "level"): Override("debug", "--log-level"),
    }
    found = rows(effective(overrides=overrides))
    assert found["models.a.workers"]["value"] == found["models.b.workers"]["value"] == "3"
    assert found["logging.level"]["origin"] == "--log-level"


def examples():
    page = (ROOT / "docs" / "configuration.md").read_text()
    return [TEXT, "", *re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]


@pytest.mark.parametrize("text", examples())
@pytest.mark.parametrize("with_origin", [True, False])
def test_the_listing_is_the_same_configuration(effective, tmp_path, text, with_origin):
    before = effective(text)
    again = tmp_path / "again.yaml"
    again.write_text(listing(before.settings(), with_origin=with_origin))
    assert load_config(again) == before.config


def test_without_a_file():
    found = rows(Effective(Config(), Source(DEFAULT, {})))
    assert found["models"]["value"] == "{}"
    assert not any(row["set"] for row in found.values())


# ---- the program ----


def openclawd(*args, **environ):
    return subprocess.run(
        [sys.executable, "-m", "openclawd", *args],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_places_are_named_with_what_named_them(effective, tmp_path):
    effective()
    file = tmp_path / "openclawd.yaml"
    shown = openclawd(
        "--show-config=origin", "--config", str(file), "--state-dir", "/s", RUNTIME_DIRECTORY="/r"
    )
    head = shown.stdout.splitlines()[:3]
    assert head == [
        f"# configuration file: {file}",
        "# state directory: /s (--state-dir)",
        "# socket: /r/openclawd.sock (environment: $RUNTIME_DIRECTORY)",
    ]
    assert re.search(r"^model_paths: \[/s/models\] +# --state-dir$", shown.stdout, re.MULTILINE)
    from_environ = openclawd("--show-config=origin", "--config", str(file), STATE_DIRECTORY="/t")
    assert "[/t/models]" in from_environ.stdout
    assert "# environment: $STATE_DIRECTORY" in from_environ.stdout


def test_models_of_the_command_line():
    shown = openclawd("--show-config", "json", "--models", "a=/m/a.gguf", "--workers", "2")
    found = {row["key"]: row for row in json.loads(shown.stdout)["settings"]}
    assert found["models.a.path"]["origin"] == "--models"
    assert found["models.a.preload"]["value"] == "true"
    assert found["models.a.workers"] == {
        "key": "models.a.workers", "value": "2", "set": True, "origin": "--workers"
    }  # fmt: skip


def test_a_wrong_configuration_is_not_shown(tmp_path):
    (tmp_path / "c.yaml").write_text("modles: {}\n")
    shown = openclawd("--show-config", "--config", str(tmp_path / "c.yaml"))
    assert (shown.returncode, shown.stdout) == (78, "")
    assert "c.yaml:1: modles: unknown key; did you mean 'models'?" in shown.stderr
