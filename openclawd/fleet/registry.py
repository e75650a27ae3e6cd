"""The models of one daemon by name: configured ones, aliases, and files in `model_paths`.

Owns how a name becomes a model and which models exist. What a model does is `model.py`'s.
"""

from __future__ import annotations

import asyncio
import math
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import psutil

from openclawctl.wire.errors import InvalidRequest, NotFound
from openclawctl.wire.fields import suggestion
from openclawd.config import (
    Config,
    ModelConfig,
    find_model_file,
    is_model_file,
    model_files_by_stem,
)
from openclawd.fleet.model import Model, ModelSpec, ModelState
from openclawd.fleet.placement import CoreAllocator
from openclawd.worker.messages import Load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def _anybody(name: str) -> bool:
    """Every model may be named to this caller."""
    del name
    return True


class Fleet:
    """Every model. `on_change` hears of every change of a model's state or load progress. Workers
    keep prefixes in folders of `prefix_dir`, and make hashes of prompts with `prefix_key`.

    `start()` needs the TaskGroup in which the models' tasks are to live.
    """

    def __init__(
        self,
        config: Config,
        *,
        prefix_dir: Path,
        on_change: Callable[[Model], None],
        prefix_key: bytes = b"",
    ) -> None:
        self._config = config
        self._prefix_dir = prefix_dir
        self._prefix_key = prefix_key
        self._on_change = on_change
        self._cores = CoreAllocator(os.sched_getaffinity(0))
        self._models: dict[str, Model] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._run_tasks: list[asyncio.Task[None]] = []
        self._aliases: dict[str, list[str]] = {}
        for alias, name in config.aliases.items():
            self._aliases.setdefault(name, []).append(alias)

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Create the configured models; nothing is loaded yet."""
        self._tasks = tasks
        for name, model_config in self._config.models.items():
            self._add(name, model_config)

    @property
    def models(self) -> Iterator[Model]:
        """Configured models, and files that somebody has asked for by name."""
        return iter(self._models.values())

    def preloads(self) -> list[Model]:
        return [model for model in self._models.values() if model.spec.preload]

    def config_of(self, model: Model) -> ModelConfig:
        """Its configuration; the defaults for a file without one."""
        return self._config.models.get(model.name) or ModelConfig(path=model.spec.load.path)

    def name_of(self, name: str | None, *, may_see: Callable[[str], bool] = _anybody) -> str:
        """The own name of the model a request means, whether or not there is one: of an alias its
        model, without a name the default. Raises `InvalidRequest`, naming what the caller `may_see`
        only."""
        if name is None:
            name = self._config.default_name()
            if name is None:
                known = sorted(filter(may_see, self._models))
                raise InvalidRequest(
                    "the request names no model and the daemon has no default",
                    hint="name one of: " + (", ".join(known) or "(none configured)"),
                )
        return self._config.aliases.get(name, name)

    def resolve(self, name: str | None, *, may_see: Callable[[str], bool] = _anybody) -> Model:
        """The model a request means. Raises `NotFound`, also for one that the caller may not see, or
        `InvalidRequest`.

        Looks for files only when the name is not configured, and then only at one path per folder.
        """
        own_name = self.name_of(name, may_see=may_see)
        is_seen = may_see(own_name)
        model = (self._models.get(own_name) or self._find_file(own_name)) if is_seen else None
        if model is None:
            asked = name or own_name
            aliases = self._config.aliases
            known = [*self._models, *aliases]
            known = [each for each in known if may_see(aliases.get(each, each))]
            raise NotFound(
                f"there is no model {asked!r}" + suggestion(asked, known),
                hint="`openclawctl models` lists what there is; a GGUF file in "
                f"{' or '.join(self._config.model_paths)} can be used by its name without .gguf",
            )
        return model

    async def stop(self) -> None:
        """Unload everything, once the requests that still run have ended."""
        async with asyncio.TaskGroup() as tasks:
            for model in self._models.values():
                tasks.create_task(model.unload())
        for task in self._run_tasks:
            task.cancel()

    def rows(self) -> list[dict[str, Any]]:
        """What `status` shows of each model."""
        return [self._row(model) for model in self._models.values()]

    async def rows_with_files(self) -> list[dict[str, Any]]:
        """What `models` shows: the same, and every file that could be used by its name."""
        files = await asyncio.to_thread(model_files_by_stem, self._config.model_paths)
        configured = {model.spec.load.path for model in self._models.values()}
        return self.rows() + [
            _file_row(name, path)
            for name, path in files.items()
            if name not in self._models and str(path) not in configured
        ]

    def _find_file(self, name: str) -> Model | None:
        if "/" in name or "\0" in name or name.startswith("."):
            return None
        path = find_model_file(f"{name}.gguf", self._config.model_paths)
        if not is_model_file(path):
            return None
        return self._add(name, ModelConfig(path=str(path)))

    def _add(self, name: str, config: ModelConfig) -> Model:
        assert self._tasks is not None, "start() comes first"
        model = Model(
            self._spec(name, config),
            cores=self._cores,
            on_change=self._on_change,
            max_waiting=self._config.resource_limits.max_queued_requests,
            max_skips=self._config.resource_limits.max_skips,
        )
        self._models[name] = model
        self._run_tasks.append(self._tasks.create_task(model.run(), name=f"model {name}"))
        return model

    def _spec(self, name: str, config: ModelConfig) -> ModelSpec:
        num_cores = self._config.resource_limits.cpu_cores_per_worker
        load = Load(
            name=name,
            path=self._file(config.path),
            parallel=config.parallel,
            context=config.context,
            kv_tokens=config.kv_tokens,
            batch_tokens=config.options.batch_tokens,
            threads=config.threads,
            gpu_layers=config.gpu_layers,
            options=config.options.for_backend(),
            adapters={
                adapter: {"path": self._file(settings.path), "scale": settings.scale}
                for adapter, settings in config.adapters.items()
            },
            system_prompts=config.system_prompts,
            guess_method=config.speculation.method,
            max_guesses=config.speculation.max_tokens,
            draft_path=self._file(config.speculation.draft_model),
            max_skips=self._config.resource_limits.max_skips,
            prefix_folder=str(self._prefix_dir / name),
            shares_prefixes=config.prefix_sharing != "off",
            computes_aside=config.prefill_aside,
            persist_prefixes=config.persist_prefixes,
            max_prefix_age_s=config.max_prefix_age_s,
            prefix_key=self._prefix_key,
        )
        return ModelSpec(
            load=load,
            preload=config.preload,
            required=config.required,
            keep_alive_s=config.keep_alive_s,
            devices=tuple(config.devices),
            num_cores=num_cores,
        )

    def _file(self, path: str | None) -> str:
        return str(find_model_file(path, self._config.model_paths)) if path else ""

    def _row(self, model: Model) -> dict[str, Any]:
        load = model.spec.load
        expires_in_s = model.expires_in_s
        return {
            "name": model.name,
            "backend": model.spec.backend,
            "state": model.state.value,
            "reason": model.reason,
            "since": model.since,
            "default": model.name == self._config.default_name(),
            "aliases": self._aliases.get(model.name, []),
            "path": load.path,
            "adapters": sorted(load.adapters),
            "parallel": load.parallel,
            "context": load.context,
            "kv_tokens": load.kv_tokens,
            "busy": model.turns.num_running,
            "queued": model.turns.num_waiting,
            "queue": _queue(model),
            "keep_alive_s": None
            if math.isinf(model.spec.keep_alive_s)
            else model.spec.keep_alive_s,
            "expires_in_s": expires_in_s,
            "loading": _progress(model),
            "worker_pid": model.worker_pid,
            "memory_bytes": _memory_bytes(model.worker_pid),
            "steps": model.num_steps,
            "engine": model.gauges,
            "info": model.info,
        }


def _queue(model: Model) -> dict[str, Any]:
    return {
        priority.name.lower(): asdict(standing)
        for priority, standing in model.turns.standings().items()
    }


def _progress(model: Model) -> dict[str, Any] | None:
    if model.state is not ModelState.LOADING:
        return None
    return {"phase": model.progress.phase, "fraction": model.progress.fraction}


def _memory_bytes(pid: int | None) -> int | None:
    """Resident memory of a worker, its mapped model included; None without one."""
    if pid is None:
        return None
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def _file_row(name: str, path: Path) -> dict[str, Any]:
    """A file nobody has used yet, with the keys that make sense for it."""
    return {
        "name": name,
        "backend": "llama",
        "state": ModelState.UNLOADED.value,
        "reason": "",
        "default": False,
        "aliases": [],
        "path": str(path),
        "busy": 0,
        "queued": 0,
        "memory_bytes": None,
        "info": {},
    }
