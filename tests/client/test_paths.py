"""The order in which the socket is looked for, the client configuration, API key files."""

from __future__ import annotations

import contextlib
import os
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawctl import ConfigError, paths
from openclawctl.paths import ClientConfig, find_socket, load_api_key, load_config, parse_config


def test_socket_look_up_order(monkeypatch, tmp_path):
    system = tmp_path / "system.sock"
    monkeypatch.setattr(paths, "SYSTEM_SOCKET", str(system))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.setattr(os, "geteuid", lambda: 7)
    none, configured = ClientConfig(), ClientConfig(socket="/configured")
    assert find_socket(None, config=none) == "/run/user/7/openclawd/openclawd.sock"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert find_socket(None, config=none) == str(system)
    monkeypatch.setattr(os, "geteuid", lambda: 7)
    system.touch()
    assert find_socket(None, config=none) == str(system)
    assert find_socket(None, config=configured) == "/configured"
    monkeypatch.setenv("OPENCLAWD_SOCKET", "/from-environment")
    assert find_socket(None, config=configured) == "/from-environment"
    assert find_socket("/explicit", config=configured) == "/explicit"


def test_user_runtime_dir_without_the_variable(monkeypatch):
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert paths.user_runtime_dir() == f"/run/user/{os.getuid()}/openclawd"


def test_configuration_is_read_where_it_belongs(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert load_config() == ClientConfig()
    file = tmp_path / "openclawd" / "client.yaml"
    file.parent.mkdir()
    file.write_text(
        "---\n# mine\nsocket: '/a b/c.sock'  # quoted\ndefault_model: smollm2 # the small one\n"
        'api_key_file: "~/key"\n'
    )
    monkeypatch.setenv("HOME", "/home/ada")
    assert load_config() == ClientConfig("/a b/c.sock", "smollm2", "/home/ada/key")


def test_configuration_falls_back_to_the_home_directory(monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/ada")
    assert paths.config_file() == "/home/ada/.config/openclawd/client.yaml"


def test_empty_values_set_nothing():
    assert parse_config("socket:\ndefault_model: # none\n", path="f") == ClientConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("socket: /a\nsockett: /b", "f:2: unknown key 'sockett'; allowed: socket, default_model"),
        ("socket: /a\n  more: b", "f:2: 'more: b' is not a `key: value` line"),
        ("- socket", "f:1: '- socket' is not"),
        ("socket /a", "f:1: 'socket /a' is not"),
        ("socket:/a", "f:1: 'socket:/a' is not"),
        ("\nsocket: a.sock", "f:2: 'a.sock' must be an absolute path"),
        ("socket: /a\nsocket: /b", "f:2: 'socket' is set twice"),
        ("socket: '/a", 'f:1: "\'/a" is not one quoted value'),
    ],
)
def test_configuration_errors_name_file_and_line(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_config(text, path="f")
    assert message in str(caught.value)
    assert caught.value.exit_status == 2


@given(st.text(max_size=200))
def test_any_text_is_a_configuration_or_an_error(text):
    with contextlib.suppress(ConfigError):
        parse_config(text, path="f")


@given(st.text(alphabet=string.ascii_letters + string.digits + "-_.:/ ", min_size=1))
def test_quoted_values_are_kept_as_they_are(value):
    assert parse_config(f"default_model: '{value}'", path="f").default_model == value


def test_unreadable_configuration(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(str(tmp_path))
    (tmp_path / "latin").write_bytes(b"socket: \xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(str(tmp_path / "latin"))
    (tmp_path / "big").write_bytes(b"#" * 70_000)
    with pytest.raises(ConfigError, match="larger than"):
        load_config(str(tmp_path / "big"))


def test_api_key_comes_from_a_file(monkeypatch, tmp_path):
    none = ClientConfig()
    assert load_api_key(None, config=none) is None
    for name in ("explicit", "environment", "configured"):
        (tmp_path / name).write_text(f"key-{name}\n")
    config = ClientConfig(api_key_file=str(tmp_path / "configured"))
    assert load_api_key(None, config=config) == "key-configured"
    monkeypatch.setenv("OPENCLAWD_API_KEY_FILE", str(tmp_path / "environment"))
    assert load_api_key(None, config=config) == "key-environment"
    assert load_api_key(str(tmp_path / "explicit"), config=config) == "key-explicit"


@pytest.mark.parametrize("content", [b"", b"\n", b"x" * 5000, b"\xff"])
def test_unusable_api_key_files(tmp_path, content):
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="API key file"):
        load_api_key(str(file), config=ClientConfig())
    with pytest.raises(ConfigError, match="No such file"):
        load_api_key(str(tmp_path / "none"), config=ClientConfig())


def test_default_model_is_used_when_none_is_named(monkeypatch, tmp_path):
    (tmp_path / "openclawd").mkdir()
    (tmp_path / "openclawd" / "client.yaml").write_text("default_model: tiny\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    target = paths.Target("/s", None)
    options = {}
    target.set_default_model(options)
    assert options == target.model_params(None) == {"model": "tiny"}
    assert target.model_params("other") == {"model": "other"}


def test_permission_denied_names_the_group(tmp_path):
    problem = paths.why_unreachable(str(tmp_path), PermissionError())
    assert str(tmp_path) in problem.message
    assert "usermod -aG" in problem.hint or "log in again" in problem.hint


@pytest.mark.parametrize("error", [BlockingIOError(), TimeoutError()])
def test_full_queue_of_callers(error):
    problem = paths.why_unreachable("/s", error)
    assert "accepts no connection" in problem.message


def test_other_failures_keep_the_system_s_words():
    assert "Bad file" in paths.why_unreachable("/s", OSError(9, "Bad file")).message
    assert problem_hint_without_access() == (
        "ask the administrator for membership of the group that owns this socket"
    )


def problem_hint_without_access():
    return paths.why_unreachable("/no/such/dir/s", PermissionError()).hint
