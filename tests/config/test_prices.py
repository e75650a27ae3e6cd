"""`prices`, `currency` and `ledger`: read exactly, refused in words."""

import math

import pytest

from openclawd.config import Config, ConfigError, load_config


@pytest.fixture
def load(tmp_path):
    def load(text):
        file = tmp_path / "openclawd.yaml"
        file.write_text(text)
        return load_config(file, state_dir=tmp_path)

    return load


def test_amounts_become_whole_micro_units(load):
    config = load("""
currency: EUR
prices:
  small: {prompt: "0.10", cached: 0.01, completion: 1}
  timed: {cpu_second: "0.000001", gpu_second: 2}
""")
    assert config.currency == "EUR"
    assert config.prices["small"].rates() == {
        "prompt": 100_000, "cached": 10_000, "completion": 1_000_000, "second": 0
    }  # fmt: skip
    assert config.prices["timed"].rates()["second"] == 2_000_001


def test_a_cached_token_costs_like_any_other_if_nothing_is_said(load):
    assert load("prices: {m: {prompt: 2}}").prices["m"].rates()["cached"] == 2_000_000
    assert load("prices: {m: {prompt: 2, cached: 0}}").prices["m"].rates()["cached"] == 0


@pytest.mark.parametrize("amount", ["-1", "0.0000001", "1000001", "true", "[]", "free"])
def test_what_is_no_amount(load, amount):
    with pytest.raises(ConfigError, match=r'prices\.m\.prompt.*allowed: an amount such as "0\.10"'):
        load(f"prices: {{m: {{prompt: {amount}}}}}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: {m: {path: m.gguf}}\naliases: {a: m}\nprices: {a: {prompt: 1}}", "write m,"),
        ("prices: {m: {promt: 1}}", "did you mean 'prompt'"),
        ("currency: euro", "a code such as EUR"),
        ("ledger: {keep_usage: 1h}", "a duration of 1d or more"),
        ("ledger: {keep_usage: 0}", "a duration of 1d or more"),
    ],
)
def test_mistakes(load, text, words):
    with pytest.raises(ConfigError, match=words):
        load(text)


def test_retention(load):
    assert Config().ledger.keep_usage_s == 400 * 86_400
    assert load("ledger: {keep_usage: 90d}").ledger.keep_usage_s == 90 * 86_400
    assert load("ledger: {keep_usage: forever}").ledger.keep_usage_s == math.inf
    assert load("ledger:\nprices:\n").ledger == Config().ledger


TIMED = """
prices: {small: {prompt: 1, cpu_second: "0.01"}, big: {prompt: 2}}
budgets:
  - {name: tokens, tokens: 5}
  - {name: b, money: "5", match: {model: %s}}
"""


@pytest.mark.parametrize("pattern", ["small", '"*"', "[big, sm*]"])
def test_a_budget_of_money_is_refused_for_what_is_priced_by_time(load, pattern):
    with pytest.raises(ConfigError, match=r"yaml:5: budgets\[1\].money: small counts in") as caught:
        load(TIMED % pattern)
    assert "match.model" in str(caught.value)


def test_a_budget_of_money_beside_prices_by_time(load):
    assert len(load(TIMED % "big").budgets) == 2
