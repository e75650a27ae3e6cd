"""The `security:` section: what it may hold, and where each mistake stands."""

import pytest

from openclawd.config import ConfigError, load_config

MODELS = "models: {smollm2: {path: x.gguf}}\naliases: {chat: smollm2}\n"


@pytest.fixture
def load(tmp_path):
    def load(text):
        file = tmp_path / "c.yaml"
        file.write_text(MODELS + text)
        return load_config(file).security

    return load


def test_grants_and_roles(load):
    security = load(
        "security:\n"
        '  users: {root: {role: admin}, "1000": {role: user, models: [smollm2, "q*"]}}\n'
        "  groups: {ops: {role: auditor}}\n"
        "  roles: {auditor: {operations: [usage, status], models: [], everybody: true}}\n"
    )
    assert (security.users["1000"].role, security.users["1000"].tier) == ("user", "default")
    assert security.users["1000"].models == ["smollm2", "q*"]
    assert security.users["root"].models == ["*"]
    assert security.roles["auditor"].models == []
    assert security.groups["ops"].role == "auditor"


def test_the_sockets_group(load):
    assert load("").wanted_socket_group() == ("", True)
    assert load("security:\n").wanted_socket_group() == ("", True)
    assert load("security: {users: {a: {role: user}}}").wanted_socket_group() == ("openclaw", True)
    assert load("security: {socket_group: llm}").wanted_socket_group() == ("llm", False)


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("users:\n  a: {role: usr}", "c.yaml:5: security.users.a.role", "did you mean 'user'?"),
        ("users:\n  a: {}", "c.yaml:5: security.users.a.role", "missing; write reader, user"),
        ("users:\n  1000: {role: user}", "c.yaml:5", "not text; write it in quotes"),
        ("users:\n  root: {role: user}", "c.yaml:5", "root is an admin in any case"),
        (
            "groups:\n  g:\n    role: user\n    tier: platin",
            "c.yaml:7: security.groups.g.tier",
            "'platin', which is no tier; allowed: default",
        ),
        (
            "groups:\n  g:\n    role: user\n    models: [chat]",
            "c.yaml:7: security.groups.g.models",
            "found the alias 'chat'; name the model, smollm2",
        ),
        ("roles:\n  user: {operations: []}", "c.yaml:5: security.roles.user", "built-in role"),
        ("roles:\n  nobody: {operations: []}", "c.yaml:5", "built-in role"),
        (
            "roles:\n  r:\n    operations: [usge]",
            "c.yaml:6: security.roles.r.operations",
            "did you mean 'usage'?",
        ),
        ("roles:\n  r: {operations: [keys.create]}", "c.yaml:5", "for admins alone"),
        ("users:\n  a: {role: user, colour: red}", "c.yaml:5", "unknown key"),
    ],
)
def test_mistakes_have_a_place(load, text, place, message):
    indented = "".join(f"  {line}\n" for line in text.splitlines())
    with pytest.raises(ConfigError) as caught:
        load("security:\n" + indented)
    (line,) = str(caught.value).splitlines()
    assert place in line
    assert message in line
