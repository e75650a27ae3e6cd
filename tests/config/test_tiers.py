"""What a configuration may say of tiers, and what the queue is told of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from openclawctl.wire.errors import LimitExceeded
from openclawd.admission.tiers import DEFAULT_TIER, Priority, Tier
from openclawd.config import load_config
from openclawd.config.errors import ConfigError
from openclawd.config.schema import Config
from openclawd.config.tiers import TierConfig

if TYPE_CHECKING:
    from pathlib import Path


def load(folder: Path, text: str) -> Config:
    (folder / "c.yaml").write_text(text)
    return load_config(folder / "c.yaml")


def test_there_is_always_a_default_tier(tmp_path: Path) -> None:
    assert Config().tiers == {"default": TierConfig()}
    config = load(tmp_path, "tiers: {gold: {priority: interactive, weight: 4}}\n")
    assert config.tiers["default"] == TierConfig()
    gold = config.tiers["gold"]
    assert (gold.priority, gold.max_priority, gold.weight) == ("interactive", "interactive", 4)
    own = load(tmp_path, "tiers: {default: {weight: 2}}\n")
    assert own.tiers == {"default": TierConfig(weight=2)}


def test_the_defaults_are_those_of_the_queue() -> None:
    tier = TierConfig()
    priorities = Priority[tier.priority.upper()], Priority[tier.max_priority.upper()]
    assert Tier("default", tier.weight, *priorities) == DEFAULT_TIER


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gold: {weight: 0}", "tiers.gold.weight: found 0; allowed: a whole number from 1 to 1000"),
        ("gold: {weight: 1001}", "tiers.gold.weight"),
        ("gold: {priority: urgent}", "tiers.gold.priority: found 'urgent'; allowed: batch, normal"),
        ("slow: {max_priority: batch}", "tiers.slow.priority: found normal, above max_priority, "),
        ("gold: {share: 4}", "tiers.gold.share"),
        ('"a b": {}', "tiers"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"tiers:\n  {text}\n")
    assert says in str(caught.value)
    assert "c.yaml:2" in str(caught.value)


def test_nobody_gets_a_higher_priority_than_its_tier_allows() -> None:
    tier = Tier("slow", priority=Priority.BATCH, max_priority=Priority.NORMAL)
    assert tier.priority_of(None) is Priority.BATCH
    assert tier.priority_of(Priority.NORMAL) is Priority.NORMAL
    with pytest.raises(
        LimitExceeded, match=r"interactive was asked .* tiers\.slow\.max_priority is normal"
    ):
        tier.priority_of(Priority.INTERACTIVE)
