"""The models of one daemon by name: configured ones, aliases, and files in `model_paths`.

Owns how a name becomes a model and which models exist, also when the configuration changes. What a
model does is `model.py`'s, how its workers are changed `rolling.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import InvalidRequest, NotFound
from openclawctl.wire.fields import suggestion
from openclawd.config import (
    Config,
    ModelConfig,
    backend_of,
    find_model_by_name,
    find_model_file,
    model_files_by_stem,
)
from openclawd.config.cpus import format_cpus
from openclawd.config.model_files import MODEL_SUFFIX
from openclawd.fleet.changes import Changes
from openclawd.fleet.footprints import Footprints
from openclawd.fleet.gpu_watch import GpuWatch
from openclawd.fleet.gpus import GpuWish
from openclawd.fleet.host_memory import has_huge_pages, total_memory
from openclawd.fleet.memory import memory_bytes
from openclawd.fleet.model import Model
from openclawd.fleet.placement import CoreAllocator
from openclawd.fleet.placer import Placer
from openclawd.fleet.residents import Residents
from openclawd.fleet.rolling import change, keep_scaled
from openclawd.fleet.spec import ModelSpec, ModelState, Scale
from openclawd.fleet.staging import Stager
from openclawd.fleet.topology import read_cpus
from openclawd.observe.logs import log_bug
from openclawd.worker.messages import Load

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from openclawd.config.fetch import FetchConfig
    from openclawd.fleet.fetcher import Fetcher
    from openclawd.fleet.replica import Replica

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FleetChange:
    """The names of models that are other ones since the configuration was applied."""

    added: list[str]
    removed: list[str]
    changed: list[str]


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
        fetcher: Fetcher,
        prefix_key: bytes = b"",
        footprints_file: Path | None = None,
        version: str = "",
    ) -> None:
        self._config = config
        self._prefix_dir = prefix_dir
        self._prefix_key = prefix_key
        self._on_change = on_change
        limits = config.resource_limits
        self.fetcher = fetcher
        self.gpus = GpuWatch()
        self._placer = Placer(
            CoreAllocator(read_cpus(os.sched_getaffinity(0)), named=_named_cpus(config)),
            self.gpus,
            Stager(fetcher, config.fetch.copy_to),
            gpu_memory_bytes=limits.gpu_memory_per_model,
            gpu_wait_s=limits.gpu_wait_s,
        )
        self.residents = Residents(
            lambda: self.models,
            budget_bytes=limits.memory_bytes,
            group_wait_s=limits.group_wait_s,
            footprints=Footprints(footprints_file),
            version=version,
        )
        self._users: defaultdict[str, set[str]] = defaultdict(set)
        self._note_users()
        self._news = Changes()
        self._models: dict[str, Model] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._run_tasks: set[asyncio.Task[None]] = set()
        self._leaving: dict[Model, ModelConfig] = {}
        self._scalers: dict[Model, asyncio.Task[None]] = {}
        self._changes: dict[Model, asyncio.Task[None]] = {}

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Create the configured models; nothing is loaded yet."""
        self._tasks = tasks
        self.residents.start(tasks)
        self._run(self.gpus.run(), "GPUs")
        for name, model_config in self._config.models.items():
            self._add(name, model_config)

    @property
    def fetch_config(self) -> FetchConfig:
        return self._config.fetch

    @property
    def models(self) -> Iterator[Model]:
        """Configured models, files that somebody has asked for by name, and those that were removed
        from the configuration and still serve."""
        return iter([*self._models.values(), *self._leaving])

    def preloads(self) -> list[Model]:
        return [model for model in self._models.values() if model.spec.preload]

    def config_of(self, model: Model) -> ModelConfig:
        """Its configuration; the defaults for a file without one."""
        if (left := self._leaving.get(model)) is not None:
            return left
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
                    hint="name one (-m, or `model`), or set default_model in the configuration: "
                    + (", ".join(known) or "(none configured)"),
                )
        return self._config.aliases.get(name, name)

    def resolve(self, name: str | None, *, may_see: Callable[[str], bool] = _anybody) -> Model:
        """The model a request means. Raises `InvalidRequest`, and `NotFound` also for one that the
        caller may not see.

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
                hint="`openclawctl models` lists what there is; what is in "
                f"{' or '.join(self._config.model_paths)} can be used by its name: a GGUF file by"
                " that without .gguf, a folder with safetensors by its own",
            )
        return model

    async def stop(self) -> None:
        """Unload everything, once the requests that still run have ended."""
        for task in (*self._changes.values(), *self._scalers.values()):
            task.cancel()
        async with asyncio.TaskGroup() as tasks:
            for model in self.models:
                tasks.create_task(model.unload())
        for task in self._run_tasks:
            task.cancel()

    def apply(self, config: Config) -> FleetChange:
        """Have the models be those of another configuration. Returns at once; workers come and go
        after that, so that no request hears of it."""
        old, self._config = self._config, config
        self._note_users()
        limits = config.resource_limits
        self.residents.limit(limits.memory_bytes, group_wait_s=limits.group_wait_s)
        self._placer.adopt(limits.gpu_memory_per_model, _named_cpus(config))
        removed = [name for name in old.models if name in self._models.keys() - config.models]
        added = [name for name in config.models if name not in self._models]
        changed = [name for name in self._models if name not in removed and self._change(name)]
        for name in removed:
            self._remove(name, old.models[name])
        for name in added:
            model = self._add(name, config.models[name])
            if model.spec.preload:
                self._try(model.wait_settled, f"preload {name}")
        return FleetChange(added, removed, changed)

    def path_of(self, name: str) -> str | None:
        """Where the file of a model that is known by this name is, or should be; of an alias, its
        model's."""
        model = self._models.get(self._config.aliases.get(name, name))
        return model.spec.load.path if model else None

    def release_file(self, name: str) -> None:
        """See that no model uses a file of the models folder. Raises `InvalidRequest` where one
        does; one that is only known by the file's name, and not loaded, is known no more."""
        target = Path(self._config.fetch_directory) / name
        for model in list(self.models):
            if not any(_is_of(target, path) for path in _paths_of(model.spec.load)):
                continue
            if model.name in self._config.models or model in self._leaving:
                raise InvalidRequest(
                    f"model {model.name} of the configuration uses {name}",
                    hint=f"take {model.name} out of it and say `openclawctl reload` first",
                )
            if model.state in _AT_WORK:
                raise InvalidRequest(
                    f"model {model.name} is {model.state.value}",
                    hint=f"say `openclawctl unload {model.name}` first",
                )
            self._remove(model.name, self.config_of(model))

    def _change(self, name: str) -> bool:
        """Bring a model to the settings that it has now. Are there others than before?"""
        model = self._models[name]
        spec = self._spec(name, self.config_of(model))
        limits = self._config.resource_limits
        model.turns.limit(max_waiting=limits.max_queued_requests, max_skips=limits.max_skips)
        has_goal = model.spec == spec or model.is_shrunk
        is_settled = has_goal and model.goal == spec and not model.note
        if is_settled and not any(each.has_old_files for each in model.replicas):
            return False
        self._end_task(self._changes, model)
        self._changes[model] = self._try(lambda: change(model, spec), f"change {name}")
        self._scale(model, spec)
        return True

    def _remove(self, name: str, config: ModelConfig) -> None:
        """Whoever has the model is served; nobody else gets it."""
        model = self._models.pop(name)
        for tasks in (self._changes, self._scalers):
            self._end_task(tasks, model)
        self._leaving[model] = config
        self._try(lambda: self._let_leave(model), f"remove {name}")

    async def _let_leave(self, model: Model) -> None:
        await model.leave()
        del self._leaving[model]

    def _scale(self, model: Model, spec: ModelSpec) -> None:
        self._end_task(self._scalers, model)
        if spec.scale.high > spec.scale.low:
            name = f"scale {model.name}"
            self._scalers[model] = self._try(lambda: keep_scaled(model), name)

    def _try(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> asyncio.Task[None]:
        """A task whose bug is logged and costs one model what was to be done for it."""

        async def tried() -> None:
            try:
                await work()
            except Exception:
                log_bug(logger, "the task %r failed on a bug", name)

        return self._run(tried(), name)

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        assert self._tasks is not None, "start() comes first"
        task = self._tasks.create_task(work, name=name)
        self._run_tasks.add(task)
        task.add_done_callback(self._run_tasks.discard)
        return task

    def _end_task(self, tasks: dict[Model, asyncio.Task[None]], model: Model) -> None:
        if (task := tasks.pop(model, None)) is not None:
            task.cancel()

    def note_change(self) -> None:
        """Something that `rows` shows is different."""
        self._news.tell()

    async def wait_change(self, at_most_s: float) -> None:
        """Until a model changes, or so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._news.wait()

    def rows(self) -> list[dict[str, Any]]:
        """What `status` shows of each model."""
        return [self.row(model) for model in self.models]

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
        path = find_model_by_name(name, self._config.model_paths)
        return self._add(name, ModelConfig(path=str(path))) if path else None

    def _add(self, name: str, config: ModelConfig) -> Model:
        model = Model(
            self._spec(name, config),
            placer=self._placer,
            residents=self.residents,
            on_change=self._model_changed,
            max_waiting=self._config.resource_limits.max_queued_requests,
            max_skips=self._config.resource_limits.max_skips,
        )
        self._models[name] = model
        self._run(model.run(), f"model {name}")
        self._scale(model, model.spec)
        return model

    def _spec(self, name: str, config: ModelConfig) -> ModelSpec:
        path = self._file(config.path)
        backend = backend_of(Path(path)) if config.backend == "auto" else config.backend
        load = Load(
            name=name,
            backend=config.backend,
            path=path,
            parallel=config.parallel,
            context=config.context,
            kv_tokens=config.kv_tokens,
            batch_tokens=config.options.batch_tokens,
            threads=config.threads,
            gpu_layers=config.gpu_layers,
            options=self._options(name, config, backend),
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
            scale=Scale(*config.scale),
            backend=backend,
            preload=config.preload,
            required=config.required,
            keep_alive_s=config.keep_alive_s,
            is_pinned=config.pinned,
            min_residency_s=config.min_residency_s,
            min_parallel=config.min_parallel,
            min_context=config.min_context,
            gpu=GpuWish(
                devices=tuple(config.devices),
                gpu_layers=config.gpu_layers,
                fails_without=config.without_gpu == "fail",
            ),
            num_cores=self._num_cpus(config),
            step_timeout_s=self._config.resource_limits.step_timeout_s,
            cpus=config.cpus,
        )

    def _options(self, name: str, config: ModelConfig, backend: str) -> dict[str, Any]:
        """Weights that nobody shares are read into memory of huge pages, which the kernel does not
        have for files: docs/memory.md."""
        options = config.options.for_backend()
        if backend == "llama" and has_huge_pages() and self._is_to_be_read(name, config):
            options.setdefault("mmap", False)
        return options

    def _is_to_be_read(self, name: str, config: ModelConfig) -> bool:
        """Has one worker alone the files of a model, on a CPU, with room for another copy? One that
        is to replace it is loaded beside it."""
        _, most_workers = config.scale
        may_use_gpu = config.gpu_layers != 0 and self.gpus.is_any_likely
        if most_workers > 1 or may_use_gpu:
            return False
        files = self._files(config)
        if any(self._users.get(file, {name}) != {name} for file in files):
            return False
        most = self._config.resource_limits.memory_bytes or total_memory()
        return 2 * sum(map(_size, files)) <= most

    def _files(self, config: ModelConfig) -> set[str]:
        """Whose weights one worker has, whatever they are called."""
        paths = (config.path, config.speculation.draft_model)
        return {os.path.realpath(self._file(path)) for path in paths if path}

    def _note_users(self) -> None:
        """Which models of the configuration have which file."""
        self._users = defaultdict(set)
        for name, config in self._config.models.items():
            for file in self._files(config):
                self._users[file].add(name)

    def _num_cpus(self, config: ModelConfig) -> int | None:
        """How many each worker has to itself; several divide those of their model."""
        if config.cpus is None:
            return self._config.resource_limits.cpu_cores_per_worker
        _, most_workers = config.scale
        return len(config.cpus) // most_workers

    def _file(self, path: str | None) -> str:
        return str(find_model_file(path, self._config.model_paths)) if path else ""

    def _model_changed(self, model: Model) -> None:
        self._on_change(model)
        self.note_change()

    def row(self, model: Model) -> dict[str, Any]:
        load = model.spec.load
        expires_in_s = model.expires_in_s
        return {
            "name": model.name,
            "backend": model.spec.backend,
            "state": model.state.value,
            "reason": model.reason,
            "since": model.since,
            "default": model.name == self._config.default_name(),
            "aliases": [
                alias for alias, name in self._config.aliases.items() if name == model.name
            ],
            "path": load.path,
            "adapters": sorted(load.adapters),
            "parallel": load.parallel,
            "context": load.context,
            "kv_tokens": load.kv_tokens,
            "slots": model.turns.num_places,
            "busy": model.turns.num_running,
            "queued": model.turns.num_waiting,
            "waiting": model.num_waiting,
            "devices": _devices(model),
            "idle_s": model.idle_s,
            "tokens_per_s": model.tokens_per_s,
            "queue": _queue(model),
            "keep_alive_s": None
            if math.isinf(model.spec.keep_alive_s)
            else model.spec.keep_alive_s,
            "expires_in_s": expires_in_s,
            "loading": _progress(model),
            "worker_pid": model.worker_pid,
            "memory_bytes": memory_bytes(each.worker_pid for each in model.replicas),
            "workers": [self._worker_row(each) for each in model.replicas],
            "steps": model.num_steps,
            "stalled_s": round(model.stalled_s, 1),
            "engine": model.gauges,
            "info": model.info,
        }

    def _worker_row(self, replica: Replica) -> dict[str, Any]:
        link, place, pid = replica.link, replica.place, replica.worker_pid
        return {
            "index": replica.index,
            "state": replica.state.value,
            "reason": replica.reason,
            "since": replica.since,
            "pid": pid,
            "busy": link.num_sequences if link else 0,
            "slots": replica.num_slots,
            "steps": replica.num_steps,
            "cpus": format_cpus(place.cpus) if pid and place else "",
            "gpu_memory_bytes": self.gpus.report.memory_of(pid),
        }


_AT_WORK: Final = (ModelState.LOADING, ModelState.READY, ModelState.DRAINING)


def _paths_of(load: Load) -> list[str]:
    """Every file that a model needs."""
    adapters = [adapter["path"] for adapter in load.adapters.values()]
    return [path for path in (load.path, load.draft_path, *adapters) if path]


def _is_of(target: Path, path: str) -> bool:
    """Is a file the model of this name in the models folder, or in the folder of that name?"""
    file = Path(path)
    return file == target.with_name(f"{target.name}{MODEL_SUFFIX}") or target in (
        file,
        *file.parents,
    )


def _named_cpus(config: Config) -> dict[str, frozenset[int]]:
    return {name: model.cpus for name, model in config.models.items() if model.cpus is not None}


def _queue(model: Model) -> dict[str, Any]:
    return {
        priority.name.lower(): asdict(standing)
        for priority, standing in model.turns.standings().items()
    }


def _devices(model: Model) -> list[str]:
    """What computes it, while it is loaded: the devices that are configured, else what its worker
    says."""
    if model.state is not ModelState.READY:
        return []
    return [*model.spec.gpu.devices] or [*model.info.get("devices", [])]


def _progress(model: Model) -> dict[str, Any] | None:
    if model.state is not ModelState.LOADING:
        return None
    return {"phase": model.progress.phase, "fraction": model.progress.fraction}


def _size(path: str) -> int:
    """0 while the file is not there."""
    with contextlib.suppress(OSError):
        return os.path.getsize(path)
    return 0


def _file_row(name: str, path: Path) -> dict[str, Any]:
    """A file nobody has used yet, with the keys that make sense for it."""
    return {
        "name": name,
        "backend": backend_of(path),
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
