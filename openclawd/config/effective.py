"""The configuration as it holds, and where each value comes from.

Owns the listing of `openclawctl config show`: YAML in which settings are lines and defaults are
comments, so that it can be a configuration file itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import yaml
from pydantic import BaseModel

from openclawd.config.reference import default_of, keys_of
from openclawd.config.source import KeyPath, Source, key_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from openclawd.config.schema import Config

DEFAULT: Final = "default"
_ORIGIN_COLUMN: Final = 50


@dataclass(frozen=True, slots=True)
class Override:
    """A value that is not from the file: `origin` is the option or the variable."""

    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class Setting:
    """One line. `value` as the file would have it; empty of a section that has further lines.
    `is_set` if it is from anywhere but the defaults."""

    path: KeyPath
    value: str
    origin: str
    is_set: bool

    def as_dict(self) -> dict[str, Any]:
        return {
            "key": key_path(self.path),
            "value": self.value,
            "set": self.is_set,
            "origin": self.origin,
        }


@dataclass(frozen=True, slots=True)
class Effective:
    """A configuration with its source. `overrides` by key path; `*` stands for any model's name."""

    config: Config
    source: Source
    overrides: Mapping[KeyPath, Override] = field(default_factory=dict)

    def settings(self) -> list[Setting]:
        """Every key, sections before what is in them, in the order of the schema."""
        return list(self._section(self.config, (), is_set=True))

    def _section(self, section: BaseModel, path: KeyPath, *, is_set: bool) -> Iterator[Setting]:
        names = {info.alias or name: name for name, info in type(section).model_fields.items()}
        for key, info in keys_of(type(section)).items():
            here = (*path, key)
            is_here = is_set and names[key] in section.model_fields_set
            value = getattr(section, names[key])
            if (override := self._override(here)) is not None:
                is_set_there = override.origin != DEFAULT
                yield Setting(here, _yaml(override.value), override.origin, is_set=is_set_there)
            elif _parts(value):
                yield from self._parts(value, here, is_set=is_here)
            elif is_here:
                yield Setting(here, self._text(here, value), self.source.place(here), is_set=True)
            elif (inherited := self._inherited(here)) is not None:
                yield inherited
            else:
                yield Setting(here, default_of(info), DEFAULT, is_set=False)

    def _parts(self, value: Any, path: KeyPath, *, is_set: bool) -> Iterator[Setting]:
        """A section, or a map or a list of sections."""
        origin = self.source.place(path) if is_set else DEFAULT
        if isinstance(value, BaseModel):
            inner = list(self._section(value, path, is_set=is_set))
            is_any = any(setting.is_set for setting in inner)
            yield Setting(path, "", origin if is_any else DEFAULT, is_set=is_any)
            yield from inner
            return
        yield Setting(path, "", origin, is_set=is_set)
        for step, part in _parts(value):
            yield from self._parts(part, (*path, step), is_set=is_set)

    def _override(self, path: KeyPath) -> Override | None:
        pattern = tuple(
            "*" if path[:1] == ("models",) and i == 1 else s for i, s in enumerate(path)
        )
        return self.overrides.get(path) or self.overrides.get(pattern)

    def _inherited(self, path: KeyPath) -> Setting | None:
        """What the daemon's `inference_settings` say where a model's say nothing."""
        if len(path) != 4 or path[0] != "models" or path[2] != "inference_settings":
            return None
        daemons = self.config.inference_settings
        key = str(path[-1])
        if key not in daemons.model_fields_set:
            return None
        source = path[2:]
        value = self._text(source, getattr(daemons, key))
        return Setting(path, value, f"{self.source.place(source)}, for all models", is_set=False)

    def _text(self, path: KeyPath, value: Any) -> str:
        """As the file has it, or what came of it where the file has a short form."""
        found: Any = self.source.data
        for step in path:
            try:
                found = found[step]
            except (KeyError, IndexError, TypeError):
                return _yaml(value)
        return _yaml(found)


def _parts(value: Any) -> list[tuple[str | int, BaseModel]]:
    """The sections that a value is made of, with their steps; a section is one."""
    if isinstance(value, BaseModel):
        return [("", value)]
    steps: Any = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        steps = enumerate(value)
    return [(step, part) for step, part in steps if isinstance(part, BaseModel)]


def _yaml(value: Any) -> str:
    """On one line."""
    text = yaml.safe_dump(
        value, default_flow_style=True, allow_unicode=True, width=float("inf"), sort_keys=False
    )
    return text.removesuffix("...\n").rstrip("\n").replace("\n", " ")


def listing(settings: list[Setting], *, with_origin: bool) -> str:
    """YAML; what is not set stands behind `#`."""
    lines = []
    for setting in settings:
        indent = "  " * (len(setting.path) - 1)
        step = setting.path[-1]
        label = "-" if isinstance(step, int) else f"{_yaml(step)}:"
        line = f"{'' if setting.is_set else '#'}{indent}{label} {setting.value}".rstrip()
        if with_origin:
            line = f"{line:<{_ORIGIN_COLUMN}}  # {setting.origin}"
        lines.append(line)
    return "\n".join(lines)
