"""The part of a scrape that is about each model: its state, its queue, its engine, its workers.

Everything is read from the fleet when somebody asks; the engine's numbers are those of its last
step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from openclawd.fleet.ending import Cause
from openclawd.fleet.spec import ModelState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from openclawd.fleet.model import Model
    from openclawd.observe.exposition import Exposition, Sample

_MICRO: Final = 1e6

_MOST: Final = 2**53
"""More than any gauge of an engine; a worker's numbers are looked at before they are believed."""


def write(text: Exposition, models: Sequence[Model]) -> None:
    _states(text, models)
    _loads(text, models)
    _queues(text, models)
    _engines(text, models)


def _of_models(models: Sequence[Model], of: Callable[[Model], float | None]) -> Iterator[Sample]:
    """One value for each model that has one."""
    for model in models:
        if (value := of(model)) is not None:
            yield (model.name,), value


def _states(text: Exposition, models: Sequence[Model]) -> None:
    text.family(
        "openclawd_model_state",
        "gauge",
        "1 for the state that a model is in.",
        ("model", "state"),
        (
            ((model.name, state.value), model.state is state)
            for model in models
            for state in ModelState
        ),
    )
    text.family(
        "openclawd_model_stalled_seconds",
        "gauge",
        "How long a model's worker has said nothing although it has work; 0 if all is well.",
        ("model",),
        _of_models(models, lambda model: model.stalled_s),
    )


def _loads(text: Exposition, models: Sequence[Model]) -> None:
    text.family(
        "openclawd_model_load_seconds",
        "gauge",
        "How long the last load of a model took.",
        ("model",),
        _of_models(models, lambda model: model.history.load_s),
    )
    text.family(
        "openclawd_model_loads_total",
        "counter",
        "How often a model was loaded.",
        ("model",),
        _of_models(models, lambda model: model.history.num_loads),
    )
    text.family(
        "openclawd_worker_starts_total",
        "counter",
        "Worker processes that were started; all after the first are restarts.",
        ("model",),
        _of_models(models, lambda model: model.history.num_starts),
    )
    text.family(
        "openclawd_worker_exits_total",
        "counter",
        "Workers that ended, by why.",
        ("model", "cause"),
        (
            ((model.name, cause.value.replace(" ", "_")), model.history.exits[cause])
            for model in models
            for cause in Cause
            if cause in model.history.exits or cause is Cause.CRASHED
        ),
    )


def _queues(text: Exposition, models: Sequence[Model]) -> None:
    text.family(
        "openclawd_num_requests_running",
        "gauge",
        "Places at a model that are taken; a request with several choices takes several.",
        ("model",),
        _of_models(models, lambda model: model.turns.num_running),
    )
    text.family(
        "openclawd_num_requests_waiting",
        "gauge",
        "Requests in the queue of a model.",
        ("model",),
        _of_models(models, lambda model: model.turns.num_waiting),
    )
    text.family(
        "openclawd_slots",
        "gauge",
        "Places at a model: its `parallel`.",
        ("model",),
        _of_models(models, lambda model: model.spec.load.parallel),
    )


_GAUGES: Final = (
    ("kv_used_tokens", "kv_cache_used_tokens", "KV cells that hold a token."),
    ("kv_kept_tokens", "kv_cache_kept_tokens", "Those of them that are in kept prefixes."),
    ("kv_stowed_tokens", "kv_cache_stowed_tokens", "Tokens of kept prefixes in the host's memory."),
    ("kv_total_tokens", "kv_cache_tokens", "All KV cells."),
    ("batch_tokens", "batch_tokens", "Tokens that the last step computed."),
)


def _engines(text: Exposition, models: Sequence[Model]) -> None:
    """As of the last step of each worker."""
    loaded = [model for model in models if model.state in (ModelState.READY, ModelState.DRAINING)]
    for gauge, name, help_text in _GAUGES:
        text.family(
            f"openclawd_{name}",
            "gauge",
            help_text,
            ("model",),
            _of_models(loaded, lambda model, gauge=gauge: _gauge(model, gauge)),  # type: ignore[misc]
        )
    text.family(
        "openclawd_kv_cache_usage_ratio",
        "gauge",
        "The share of a model's KV cells that hold a token.",
        ("model",),
        _of_models(loaded, _kv_usage),
    )
    text.family(
        "openclawd_last_step_seconds",
        "gauge",
        "How long the last step took.",
        ("model",),
        _of_models(loaded, lambda model: _scaled(_gauge(model, "step_us"))),
    )
    text.family(
        "openclawd_steps_total",
        "counter",
        "Steps of a model's worker; begins anew with each worker.",
        ("model",),
        _of_models(loaded, lambda model: model.num_steps),
    )
    text.family(
        "openclawd_num_preemptions_total",
        "counter",
        "Sequences that lost their place to a more urgent one, or for want of KV cells; begins anew"
        " with each worker.",
        ("model",),
        _of_models(loaded, lambda model: _gauge(model, "preemptions")),
    )


def _gauge(model: Model, name: str) -> int | None:
    value = model.gauges.get(name)
    return value if isinstance(value, int) and 0 <= value < _MOST else None


def _scaled(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / _MICRO


def _kv_usage(model: Model) -> float | None:
    used, total = _gauge(model, "kv_used_tokens"), _gauge(model, "kv_total_tokens")
    return used / total if used is not None and total else None
