"""`openclawctl config`, with the daemon's real program behind it."""

from __future__ import annotations

import json


def test_show(ctl, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("logging:\n  level: debug\n")
    plain = ctl("config", "show", str(file))
    assert plain.status == 0
    assert "\nlogging:\n  level: debug\n#  format: auto\n" in plain.out
    with_origin = ctl("config", "show", "--origin", str(file))
    (line,) = [line for line in with_origin.out.splitlines() if "level: debug" in line]
    assert line.split() == ["level:", "debug", "#", f"{file}:2"]
    shown = json.loads(ctl("config", "show", "--json", str(file)).out)
    assert shown["file"] == str(file)
    settings = {row["key"]: row for row in shown["settings"]}
    assert settings["logging.level"]["origin"] == f"{file}:2"
    assert not settings["logging.format"]["set"]


def test_show_of_a_wrong_one(ctl, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("logging: {levle: debug}\n")
    answer = ctl("config", "show", str(file))
    assert (answer.status, answer.out) == (1, "")
    assert f"{file}:1: logging.levle: unknown key; did you mean 'level'?" in answer.err
    assert f"hint: see `openclawctl config check {file}`" in answer.err


def test_check_warns_of_files_that_are_not_there(ctl, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("models: {a: {path: /nope/x.gguf}}\n")
    answer = ctl("config", "check", str(file))
    assert (answer.status, answer.out) == (
        0,
        f"openclawd: the configuration ({file}) is valid; models: a\n",
    )
    warning = (
        "openclawd: warning: model a: there is no file /nope/x.gguf; "
        f"put it there, or correct its path in {file}"
    )
    assert answer.err == f"{warning}\n"
    checked = json.loads(ctl("config", "check", "--json", str(file)).out)
    assert (checked["valid"], checked["warnings"]) == (True, [warning])


def test_check_without_a_configuration(ctl, tmp_path, monkeypatch):
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", str(tmp_path))
    answer = ctl("config", "check")
    assert (answer.status, answer.err) == (0, "")
    assert f"there is no configuration file at {tmp_path}/openclawd.yaml, so the" in answer.out


def test_schema(ctl):
    assert json.loads(ctl("config", "schema").out)["title"] == "openclawd.yaml"
