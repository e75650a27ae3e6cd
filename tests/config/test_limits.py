"""The section `limits`, from the file to the rules of admission, and its contradictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from openclawd.admission.limit_rules import Action, LimitRule, OnTooLong, When
from openclawd.admission.subjects import Match, Per
from openclawd.config import ConfigError, load_config
from openclawd.server.limits import limit_rules

if TYPE_CHECKING:
    from pathlib import Path

    from openclawd.config import Config

MODELS = "models: {a: {path: /a.gguf}, b: {path: /b.gguf}}\naliases: {c: b}\n"


def loaded(folder: Path, text: str) -> Config:
    file = folder / "openclawd.yaml"
    file.write_text(MODELS + text)
    return load_config(file)


def test_a_rule_with_everything(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        "limits:\n"
        "  - {name: short, match: {tier: free, model: [a, c*]}, per: session,"
        " max_prompt_tokens: 1000, max_completion_tokens: 200, max_total_tokens: 1100,"
        " max_parallel: 4, max_queued: 0, max_queue_time: 30s,"
        " when: {queue_depth_over: 20, budget_left_below: 0.2, operation: chat, app: [x, y],"
        " prompt_tokens_over: 5}, on_too_long: 'fallback:c'}\n",
    )
    assert limit_rules(config.limits).each == (
        LimitRule(
            "short",
            match=Match(tier=("free",), model=("a", "c*")),
            per=Per.SESSION,
            max_prompt_tokens=1000,
            max_completion_tokens=200,
            max_total_tokens=1100,
            max_parallel=4,
            max_queued=0,
            max_queue_s=30.0,
            when=When(20, 0.2, ("chat",), ("x", "y"), 5),
            on_too_long=OnTooLong(Action.FALLBACK, "c"),
        ),
    )


def test_a_rule_with_little(tmp_path: Path) -> None:
    config = loaded(tmp_path, "limits:\n  - {name: few, max_parallel: 1, match: , when: }\n")
    assert limit_rules(config.limits).each == (LimitRule("few", max_parallel=1),)


def test_the_policy_of_a_models_own_limits(tmp_path: Path) -> None:
    config = loaded(tmp_path, "inference_settings: {on_too_long: truncate_middle}\n")
    assert config.on_too_long_for(config.models["a"]) == "truncate_middle"
    own = config.models["a"].inference_settings.model_copy(update={"on_too_long": "error"})
    model = config.models["a"].model_copy(update={"inference_settings": own})
    assert config.on_too_long_for(model) == "error"
    assert loaded(tmp_path, "").on_too_long_for(model) == "error"


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        (
            "limits:\n  - {name: x, max_parallel: 1}\n  - {name: x, max_queued: 1}\n",
            "5: limits[1].name: found 'x', as in limits[0]; use another",
        ),
        (
            "limits:\n  - name: x\n    max_prompt_tokens: 9\n    on_too_long: 'fallback:bb'\n",
            "6: limits[0].on_too_long: found 'bb', which is no model; allowed: a, b, c",
        ),
        ("limits:\n  - {name: x, per: all}\n", "4: limits[0]: the rule limits nothing; give it"),
        (
            "limits:\n  - {name: x, max_parallel: 1, on_too_long: truncate_head}\n",
            "4: limits[0].on_too_long: it needs max_prompt_tokens or max_total_tokens beside it",
        ),
        (
            "limits:\n  - {name: x, max_prompt_tokens: 1, on_too_long: cut}\n",
            "4: limits[0].on_too_long: found 'cut'; allowed: error, truncate_head, truncate_middle",
        ),
        ("limits:\n  - {max_parallel: 1}\n", "4: limits[0].name: missing; write a name"),
        (
            "limits:\n  - {name: x, max_parallel: 1, when: {queue_depth: 1}}\n",
            "4: limits[0].when.queue_depth: unknown key",
        ),
        (
            "inference_settings: {on_too_long: 'fallback:d'}\n",
            "3: inference_settings.on_too_long: found 'd', which is no model",
        ),
    ],
)
def test_what_is_wrong_with_rules(tmp_path: Path, text: str, finding: str) -> None:
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, text)
    assert f"openclawd.yaml:{finding}" in str(error.value)


def test_a_model_cannot_fall_back_to_itself(tmp_path: Path) -> None:
    file = tmp_path / "openclawd.yaml"
    file.write_text("models: {a: {path: /a, inference_settings: {on_too_long: 'fallback:a'}}}\n")
    with pytest.raises(ConfigError, match="fallback:a', which is the model itself"):
        load_config(file)
