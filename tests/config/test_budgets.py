"""The section `budgets:`: read as exact numbers, refused with file, line and what is allowed."""

import pytest

from openclawd.config import ConfigError, load_config

HEAD = """\
models: {small: {path: a.gguf}, tiny: {path: b.gguf}}
aliases: {chat: small}
budgets:
"""


@pytest.fixture
def load(tmp_path):
    def load(*lines):
        file = tmp_path / "c.yaml"
        file.write_text(HEAD + "".join(f"  - {line}\n" for line in lines))
        return [budget.plain() for budget in load_config(file).budgets]

    return load


def test_defaults(load):
    (budget,) = load("{name: b, tokens: 5}")
    assert budget == {
        "name": "b",
        "match": dict.fromkeys(
            ("principal", "group", "key", "tier", "app", "session", "model", "operation"), ()
        ),
        "per": "all",
        "tokens": 5,
        "money": None,
        "window": "month",
        "time_zone": "UTC",
        "on_short": "shrink",
        "fallback": None,
        "alerts": (800, 950, 1000),
        "max_wait_s": 30.0,
    }


def test_everything_set(load):
    (budget,) = load(
        '{name: research, match: {group: research, model: [small, "big*"]}, per: principal,'
        ' money: "12.50", window: 36h, time_zone: Europe/Berlin, on_short: reject,'
        ' on_exhausted: "fallback: tiny", alerts: [1, 0.5], max_wait: 1m}'
    )
    assert budget["match"]["model"] == ("small", "big*")
    assert (budget["money"], budget["window"], budget["max_wait_s"]) == (12_500_000, 129_600, 60)
    assert (budget["fallback"], budget["alerts"]) == ("tiny", (500, 1000))


def test_no_budgets(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(HEAD)
    assert load_config(file).budgets == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{name: b}", "budgets[0]: budget b limits nothing; set tokens, money or both"),
        ("{tokens: 5}", "budgets[0].name: missing; write letters, digits and . _ -, beginning"),
        ('{name: "a b", tokens: 5}', "budgets[0].name: found 'a b'; allowed: letters"),
        ("{name: b, tokens: 0}", "budgets[0].tokens: found 0; allowed: a whole number from 1"),
        ("{name: b, money: 0.1}", "budgets[0].money: found 0.1; allowed: an amount in quotes"),
        ("{name: b, tokens: 5, window: 90m}", "budgets[0].window: found '90m'; allowed: hour, day"),
        ("{name: b, tokens: 5, window: year}", "budgets[0].window: found 'year'; allowed: hour"),
        (
            "{name: b, tokens: 5, time_zone: Mars/Base}",
            "budgets[0].time_zone: found 'Mars/Base'; allowed: the name of a time zone such as",
        ),
        ("{name: b, tokens: 5, time_zone: Europe}", "budgets[0].time_zone: found 'Europe'"),
        ("{name: b, tokens: 5, alerts: [1.5]}", "budgets[0].alerts: found a list; allowed: a list"),
        ("{name: b, tokens: 5, on_exhausted: stop}", "on_exhausted: found 'stop'; allowed: reject"),
        (
            '{name: b, tokens: 5, match: {model: small}, on_exhausted: "fallback:tyni"}',
            "budgets[0].on_exhausted: 'tyni' is no model; allowed: small, tiny, chat",
        ),
        (
            '{name: b, tokens: 5, on_exhausted: "fallback:tiny"}',
            "budgets[0].on_exhausted: tiny counts in this budget as well; leave it out of",
        ),
        ("{name: b, tokens: 5, match: {grup: x}}", "budgets[0].match.grup: unknown key"),
    ],
)
def test_mistakes_are_named_with_their_line(load, line, message):
    with pytest.raises(ConfigError) as caught:
        load("{name: fine, tokens: 1}", line)
    (finding,) = caught.value.findings
    assert finding.place.endswith("c.yaml:5")
    assert message.replace("[0]", "[1]") in str(finding)


def test_a_name_that_stands_twice(load):
    with pytest.raises(ConfigError, match=r"budgets\[1\].name: found 'b' a second time"):
        load("{name: b, tokens: 1}", "{name: b, tokens: 2}")
