"""The models in one line, for `systemctl status` and the log."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from openclawd.fleet.spec import ModelState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openclawd.fleet.model import Model

_MOST_BY_NAME: Final = 6
"""More models than these do not fit a terminal's line; then only those with news are named."""


def summary(models: Sequence[Model], *, model_paths: Sequence[str]) -> str:
    """What there is, and how to get a model if there is none."""
    if not models:
        return "no model configured; put a GGUF file into " + " or ".join(model_paths)
    if len(models) <= _MOST_BY_NAME:
        return ", ".join(_describe(model) for model in models)
    counts = Counter(model.state for model in models)
    quiet = (ModelState.READY, ModelState.UNLOADED)
    news = [_describe(model) for model in models if model.state not in quiet]
    ready = f"{counts[ModelState.READY]} of {len(models)} models ready"
    return ", ".join([ready, *news[:_MOST_BY_NAME]])


def _describe(model: Model) -> str:
    if model.state is ModelState.LOADING:
        return f"{model.name} loading {model.progress.fraction:.0%}"
    return f"{model.name} {model.state.value}"
