"""What may stand under `notify`."""

import pytest

from openclawd.config import ConfigError, load_config


@pytest.fixture
def load(tmp_path):
    def load(section):
        (tmp_path / "c.yaml").write_text(f"notify: {section}\n")
        return load_config(tmp_path / "c.yaml").notify

    return load


def test_what_is_left_out(load):
    notify = load("")
    assert (notify.command, notify.webhook, notify.timeout_s, notify.retries) == ([], None, 10, 3)


def test_all_of_it(load):
    notify = load(
        "{command: [/bin/x, --to, a b], webhook: 'https://e.org:8443/h?t=1',"
        " timeout: 2s, retries: 0}"
    )
    assert notify.command == ["/bin/x", "--to", "a b"]
    assert notify.webhook == "https://e.org:8443/h?t=1"
    assert (notify.timeout_s, notify.retries) == (2, 0)


@pytest.mark.parametrize(
    "section",
    [
        "{command: [x]}",
        "{command: /bin/x}",
        "{command: ['/bin/x', \"a\\0\"]}",
        "{webhook: 'ftp://e.org'}",
        "{webhook: 'https://user:word@e.org/'}",
        "{webhook: 'https://e.org/a b'}",
        "{timeout: 0s}",
        "{timeout: 11m}",
        "{retries: 11}",
    ],
)
def test_what_may_not_stand_there(load, section):
    with pytest.raises(ConfigError, match="allowed: "):
        load(section)
