"""From a file, or from `--models`, to a checked `Config`, or to every finding at once."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from openclawctl.wire.fields import suggestion
from openclawd.config import budgets, placement, rates, reference
from openclawd.config import limits as limit_rules
from openclawd.config.errors import ConfigError, Finding, shown
from openclawd.config.model_files import (
    MODEL_SUFFIX,
    is_model_file,
    is_model_folder,
    model_files_by_stem,
)
from openclawd.config.schema import NAME_TEXT, Config, InferenceSettings, ModelConfig
from openclawd.config.source import KeyPath, Source, is_text, key_path, read_source
from openclawd.config.values import NotBuiltError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from pydantic_core import ErrorDetails

DEFAULT_STATE_DIR: Final = Path("/var/lib/openclawd")
_KEY_ITSELF: Final = "[key]"
"""What pydantic appends to the location of a map's key that is itself wrong."""


def load_config(
    path: Path, *, workers: int | None = None, state_dir: Path = DEFAULT_STATE_DIR
) -> Config:
    """The configuration in a YAML or JSON file. `workers` overrides every model's, and what it
    says of autoscaling.

    Raises `ConfigError` with all findings. Blocks on the disk.
    """
    source = read_source(path)
    data = dict(source.data)
    _set_workers(data, workers)
    return _validated(Source(source.name, data, source.lines), state_dir)


def config_from_models(
    models: str, *, workers: int | None = None, state_dir: Path = DEFAULT_STATE_DIR
) -> Config:
    """The configuration for `--models NAME[=PATH],…`: these models, preloaded, all else default.

    Raises `ConfigError`. Blocks on the disk.
    """
    found: dict[str, Any] = {}
    findings = []
    for entry in models.split(","):
        name, has_path, path = entry.strip().partition("=")
        try:
            if not is_text(entry):
                raise ValueError("it is not UTF-8 text; give the file another name")
            file = Path(path).absolute() if has_path else _file_of(name, state_dir)
            if name in found:
                raise ValueError("the name stands twice")
            if has_path and not path:
                raise ValueError("there is no path after '='; write NAME=PATH")
            found[name] = {"path": str(file), "preload": True}
        except ValueError as error:
            findings.append(Finding("--models", name, str(error)))
    if findings:
        raise ConfigError(findings)
    data = {"models": found}
    _set_workers(data, workers)
    return _validated(Source("--models", data), state_dir)


def _file_of(name: str, state_dir: Path) -> Path:
    if not name:
        raise ValueError("a name is missing; write NAME=PATH, or NAME[=PATH],NAME[=PATH]")
    folder = state_dir / "models"
    files = model_files_by_stem([str(folder)])
    if name not in files:
        known = ", ".join(sorted(files)) or "none"
        if "/" in name or name.endswith(MODEL_SUFFIX):
            raise ValueError(_path_without_name(name, files))
        raise ValueError(
            f"no file {name}.gguf and no model folder {name} in {folder} (there: {known});"
            f" write {name}=PATH" + suggestion(name, files)
        )
    return files[name]


def _path_without_name(text: str, files: Collection[str]) -> str:
    """What to write in place of a path: `files` are the models that have names."""
    path = Path(text)
    stem = path.name.removesuffix(MODEL_SUFFIX)
    if is_model_file(path) or is_model_folder(path):
        entry = f"{_valid_name(stem)}={text}"
        return f"a model needs a name; write {shlex.quote(entry)}"
    if text == f"{stem}{MODEL_SUFFIX}" and stem in files:
        return f"a name has no {MODEL_SUFFIX}; write {stem}"
    return f"there is no file {path.absolute()}, or it may not be seen; write NAME=PATH"


def _valid_name(stem: str) -> str:
    """The nearest that a model may be called (`NAME_TEXT`)."""
    return re.sub(r"[^A-Za-z0-9._:-]+", "-", stem).lstrip("._:-").rstrip("-") or "model"


def _set_workers(data: dict[str, Any], workers: int | None) -> None:
    models = data.get("models")
    if workers is None or not isinstance(models, dict):
        return
    data["models"] = {
        name: {**model, "workers": workers, "autoscale": {}} if isinstance(model, dict) else model
        for name, model in models.items()
    }


def _validated(source: Source, state_dir: Path) -> Config:
    try:
        config = Config.model_validate(source.data)
    except ValidationError as error:
        mistakes = [(_path(detail), _message(detail)) for detail in error.errors()]
        raise _error(source, mistakes) from None
    if mistakes := list(_contradictions(config)):
        raise _error(source, mistakes)
    if "model_paths" in config.model_fields_set:
        return config
    return config.model_copy(update={"model_paths": [str(state_dir / "models")]})


def _contradictions(config: Config) -> Iterator[tuple[KeyPath, str]]:
    """What single keys cannot show: settings that do not fit each other."""
    yield from _wrong_names(config)
    yield from placement.contradictions(config.models)
    for name, model in config.models.items():
        for key, message in _contradictions_of_model(model):
            yield ("models", name, key), message
    for index, key, message in rates.contradictions(config.rate_limits):
        yield ("rate_limits", index, key), message
    for path, message in config.security.mistakes(tiers=config.tiers, aliases=config.aliases):
        yield ("security", *path), message
    yield from _contradictions_of_limits(config)
    timed = [name for name, price in config.prices.items() if price.is_by_time]
    known = [*config.models, *config.aliases]
    yield from budgets.contradictions(config.budgets, known, timed=timed)
    for name in config.prices:
        if name in config.aliases:
            yield ("prices", name), f"this is an alias; write {config.aliases[name]}, its model"
    for name, tier in config.tiers.items():
        for key, message in tier.contradictions():
            yield ("tiers", name, key), message
    limits = config.resource_limits
    reserved, most = limits.reserved_admin_connections, limits.max_connections
    if reserved >= most:
        message = f"found {reserved}; it must be less than max_connections, which is {most}"
        yield ("resource_limits", "reserved_admin_connections"), message


def _contradictions_of_limits(config: Config) -> Iterator[tuple[KeyPath, str]]:
    known = [*config.models, *config.aliases]
    yield from limit_rules.contradictions(config.limits, known)
    sections: list[tuple[KeyPath, InferenceSettings]] = [((), config.inference_settings)]
    sections += [
        (("models", name), model.inference_settings) for name, model in config.models.items()
    ]
    for place, settings in sections:
        for message in limit_rules.wrong_fallback(settings.on_too_long, known):
            yield (*place, "inference_settings", "on_too_long"), message
        if place and settings.on_too_long == f"fallback:{place[-1]}":
            message = f"found {shown(settings.on_too_long)}, which is the model itself"
            yield (*place, "inference_settings", "on_too_long"), message


def _contradictions_of_model(model: ModelConfig) -> Iterator[tuple[str, str]]:
    if model.kv_tokens < model.context:
        yield "kv_tokens", f"found {model.kv_tokens}; one whole context of {model.context} must fit"
    if model.prefix_sharing == "off":
        yield from _not_without_sharing(model)
    if model.required and not model.preload:
        yield "required", "found true, without preload: true; a model is only required at the start"
    has_draft = model.speculation.draft_model is not None
    if has_draft != (model.speculation.method == "draft"):
        yield "speculation", "draft_model and method: draft need each other; set both or neither"
    for message in model.autoscale.contradictions(model.workers):
        yield "autoscale", message
    if model.pinned and model.keep_alive_s != math.inf:
        yield "pinned", "found true, beside a keep_alive that ends; remove one of them"
    for name in ("parallel", "context"):
        least, usual = getattr(model, f"min_{name}"), getattr(model, name)
        if least is not None and least > usual:
            yield f"min_{name}", f"found {least}, which is more than {name} ({usual})"


def _not_without_sharing(model: ModelConfig) -> Iterator[tuple[str, str]]:
    every = model.parallel * model.context
    if model.kv_tokens != every:
        message = f"found {model.kv_tokens}; with prefix_sharing: off it is parallel times context"
        yield "kv_tokens", f"{message}, {every}: leave it out"
    if model.system_prompts:
        yield "system_prompts", "they are computed once for all, which prefix_sharing: off forbids"


def _wrong_names(config: Config) -> Iterator[tuple[KeyPath, str]]:
    known = [*config.models, *config.aliases]
    if config.default_model is not None and config.default_model not in known:
        yield ("default_model",), _no_model(config.default_model, known)
    for alias, target in config.aliases.items():
        if alias in config.models:
            yield ("aliases", alias), "a model has this name already; choose another"
        if target not in config.models:
            yield ("aliases", alias), _no_model(target, list(config.models))


def _no_model(name: str, known: list[str]) -> str:
    return f"found {shown(name)}, which is no model; allowed: {', '.join(known) or 'none'}" + (
        suggestion(name, known)
    )


def _error(source: Source, mistakes: list[tuple[KeyPath, str]]) -> ConfigError:
    mistakes.sort(key=lambda mistake: source.line(mistake[0]))
    return ConfigError(
        [Finding(source.place(path), key_path(path), message) for path, message in mistakes]
    )


def _path(detail: ErrorDetails) -> KeyPath:
    return tuple(step for step in detail["loc"] if step != _KEY_ITSELF)


def _message(detail: ErrorDetails) -> str:
    """What was found and what is allowed, for anything the schema does not like."""
    path = _path(detail)
    if detail["type"] == "extra_forbidden":
        section = reference.section_at(path[:-1])
        assert section is not None, "only sections forbid unknown keys"
        known = list(reference.keys_of(section))
        return "unknown key" + (
            suggestion(str(path[-1]), known) or f"; allowed: {', '.join(known)}"
        )
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, NotBuiltError):
        return str(cause)
    allowed = reference.allowed_at(path)
    if detail["type"] == "missing":
        return f"missing; write {allowed}"
    if detail["loc"][-1] == _KEY_ITSELF:
        return f"found the name {shown(detail['input'])}; allowed: {NAME_TEXT}"
    return f"found {shown(detail['input'])}; allowed: {allowed}"
