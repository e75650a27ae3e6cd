"""The keys of memory: budgets, and what a model may be shrunk to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from openclawd.config import load_config
from openclawd.config.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from openclawd.config import Config


def _load(tmp_path: Path, text: str) -> Config:
    (tmp_path / "c.yaml").write_text(text)
    return load_config(tmp_path / "c.yaml")


def test_the_budget_is_a_size_or_automatic(tmp_path: Path) -> None:
    limits = _load(tmp_path, "resource_limits: {memory: 8GiB, group_wait: 500ms}").resource_limits
    assert (limits.memory_bytes, limits.group_wait_s) == (8 * 2**30, 0.5)
    limits = _load(tmp_path, "resource_limits: {memory: auto}").resource_limits
    assert (limits.memory_bytes, limits.group_wait_s) == (None, 2.0)


def test_a_model_may_shrink_and_stay(tmp_path: Path) -> None:
    text = "models: {m: {path: /m, min_parallel: 2, min_context: 512, min_residency: 1m}}"
    model = _load(tmp_path, text).models["m"]
    assert (model.min_parallel, model.min_context, model.min_residency_s) == (2, 512, 60.0)
    plain = _load(tmp_path, "models: {m: {path: /m, pinned: true}}").models["m"]
    assert (plain.min_parallel, plain.min_context, plain.keep_alive_s) == (None, None, math.inf)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resource_limits: {memory: 12}", "auto, or a size such as 8GiB"),
        ("resource_limits: {memory: much}", "auto, or a size such as 8GiB"),
        ("models: {m: {path: /m, parallel: 2, min_parallel: 3}}", "more than parallel"),
        ("models: {m: {path: /m, context: 512, min_context: 513}}", "more than context"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _load(tmp_path, text)
