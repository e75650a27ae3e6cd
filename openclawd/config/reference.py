"""The keys of the schema as a flat list, for error messages and for the documentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel

from openclawd.config.schema import Config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """One key as the documentation shows it. `path` has NAME for the names the user chooses."""

    path: str
    default: str
    allowed: str
    meaning: str


def all_keys() -> list[KeyInfo]:
    """Every key, sections before what is in them, in the order of the schema."""
    return list(_keys_of(Config, ""))


def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """A section's keys as they stand in the file."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def section_at(path: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The section at `path`, if it is one."""
    here = _walk(path)[0]
    return here if _is_section(here) else None


def allowed_at(path: tuple[str | int, ...]) -> str:
    """What may stand at `path`, in words."""
    here, info = _walk(path)
    if _is_section(here):
        return f"a map with the keys {', '.join(keys_of(here))}"
    assert info is not None, "every path below the root belongs to a key"
    return note(info, "allowed")


def sections() -> list[type[BaseModel]]:
    """The whole configuration and every section in it, each once."""
    found: list[type[BaseModel]] = [Config]
    for section in found:  # grows meanwhile
        for info in section.model_fields.values():
            kinds: tuple[Any, ...] = (info.annotation, _inner(info.annotation))
            for kind in kinds:
                if _is_section(kind) and kind not in found:
                    found.append(kind)
    return found


def default_of(info: FieldInfo) -> str:
    """What holds when a key is left out, in words where no value does."""
    text = note(info, "default")
    if text:
        return text
    value = info.default
    if isinstance(value, bool):
        return "true" if value else "false"
    return "{}" if isinstance(value, BaseModel) else str(value)


def note(info: FieldInfo, name: str) -> str:
    """What the declaration of a key says beside its type: `allowed` or `default`."""
    notes = info.json_schema_extra
    assert isinstance(notes, dict), "every key is made by keys.key"
    return str(notes[name] or "")


def _walk(path: tuple[str | int, ...]) -> tuple[Any, FieldInfo | None]:
    here: Any = Config
    found = None
    for step in path:
        if not _is_section(here):
            here = _inner(here)
            continue
        info = keys_of(here).get(str(step))
        if info is None:
            break
        found, here = info, info.annotation
    return here, found


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _inner(kind: Any) -> Any:
    """The type of the values of a map or list."""
    arguments = get_args(kind)
    return arguments[-1] if arguments else None


def _keys_of(section: type[BaseModel], prefix: str) -> Iterator[KeyInfo]:
    for name, info in keys_of(section).items():
        path = f"{prefix}{name}"
        yield KeyInfo(path, default_of(info), note(info, "allowed"), info.description or "")
        kind: Any = info.annotation
        if _is_section(kind):
            yield from _keys_of(kind, f"{path}.")
        elif _is_section(inner := _inner(kind)):
            yield from _keys_of(inner, f"{path}.NAME.")
