"""`rate_limits` of the configuration: what is accepted, and what is said of the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from openclawd.config import ConfigError, load_config

if TYPE_CHECKING:
    from pathlib import Path

    from openclawd.config.rates import RateLimitConfig


def rules(folder: Path, text: str) -> list[RateLimitConfig]:
    path = folder / "c.yaml"
    path.write_text(f"rate_limits:{text}\n")
    return load_config(path).rate_limits


def findings(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        rules(folder, text)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_none(tmp_path: Path) -> None:
    assert rules(tmp_path, "") == []
    assert rules(tmp_path, " []") == []


def test_a_rule(tmp_path: Path) -> None:
    (rule,) = rules(
        tmp_path,
        """
  - name: per-user
    match: {group: openclaw, model: [small, big-*]}
    tokens: 10000
    requests: 60
    window: 1h
    on_exceed: queue
    max_wait: 1m30s""",
    )
    assert (rule.per, rule.tokens, rule.requests) == ("principal", 10_000, 60)
    assert (rule.window_s, rule.max_wait_s, rule.max_waiting) == (3600.0, 90.0, 100)
    assert rule.match.patterns()["model"] == ("small", "big-*")


@pytest.mark.parametrize(
    ("window", "seconds"), [("1s", 1), ("1m", 60), ("1h", 3600), ("1d", 86_400), ("250ms", 0.25)]
)
def test_windows(tmp_path: Path, window: str, seconds: float) -> None:
    (rule,) = rules(tmp_path, f" [{{name: a, tokens: 1, window: {window}}}]")
    assert rule.window_s == seconds


def test_every_mistake_has_its_place(tmp_path: Path) -> None:
    text = """
  - {name: a, tokens: 0}
  - {name: b, tokens: 1, window: 10ms}
  - {name: c, tokens: 1, per: uesr}
  - {name: d, tokens: 1, match: {grop: x}}
  - {tokens: 1}"""
    pers = "all, principal, key, app, session, tier or model"
    name = "letters, digits and . _ : -, beginning with a letter or digit, 64 at most"
    window = "a duration from 100ms to 366d, such as 1s, 1m, 1h or 1d"
    at = "rate_limits"
    assert findings(tmp_path, text) == [
        f"c.yaml:2: {at}[0].tokens: found 0; allowed: a whole number from 1 to 1000000000000",
        f"c.yaml:3: {at}[1].window: found '10ms'; allowed: {window}",
        f"c.yaml:4: {at}[2].per: found 'uesr'; allowed: {pers}",
        f"c.yaml:5: {at}[3].match.grop: unknown key; did you mean 'group'?",
        f"c.yaml:6: {at}[4].name: missing; write {name}",
    ]


def test_contradictions(tmp_path: Path) -> None:
    text = """
  - {name: a, tokens: 1}
  - name: a
    window: 1h
  - name: b
    requests: 1
    max_wait: 1m
    max_waiting: 5"""
    assert findings(tmp_path, text) == [
        "c.yaml:3: rate_limits[1].name: found 'a' twice; each rule needs a name of its own",
        "c.yaml:3: rate_limits[1].name: a limits nothing; write tokens, requests or both",
        "c.yaml:7: rate_limits[2].max_wait: nobody waits without on_exceed: queue",
        "c.yaml:8: rate_limits[2].max_waiting: nobody waits without on_exceed: queue",
    ]
