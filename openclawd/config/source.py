"""A YAML or JSON file as plain data, with the line of every key.

Owns what may stand in a configuration file before its keys mean anything: size, encoding, nesting,
duplicate keys, no tags that build objects. JSON is read by the same parser, since it is YAML too.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import yaml

from openclawd.config.errors import ConfigError, Finding

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILE_BYTES: Final = 256 * 1024
"""Largest configuration file. Hundreds of models fit; parsing that much takes about a second."""

_MAX_NODES: Final = 50_000
"""Most values after aliases are followed, so that `&a [*b, *b]` cannot grow without end."""

_MAX_DEPTH: Final = 32

_MAX_BITS: Final = 64
"""Of a whole number. Nothing that can be set needs more, and Python writes no number of any length
as text."""

NO_TEXT: Final = "has half a character in it (a lone surrogate), so it is no text that can be used"

KeyPath = tuple[str | int, ...]


def is_text(value: str) -> bool:
    """Can it be written down? Not with half of a character of two, as JSON's escapes may have."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed file. `lines` holds the line of each key path; parents stand in for missing ones."""

    name: str
    data: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def line(self, path: KeyPath) -> int:
        """The line of a key path, or of the nearest parent the file has; 0 when there is none."""
        parents = (path[:length] for length in range(len(path), -1, -1))
        return next((self.lines[parent] for parent in parents if parent in self.lines), 0)

    def place(self, path: KeyPath) -> str:
        """`file:line` of a key path."""
        line = self.line(path)
        return f"{self.name}:{line}" if line else self.name


def key_path(path: KeyPath) -> str:
    """`models.smollm2.devices[0]`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def read_source(path: Path) -> Source:
    """Parse a file. Raises `ConfigError` when it cannot be read or is not sound YAML or JSON."""
    name = str(path)
    if not is_text(name):
        raise _refusal(name, "the name of this file is not UTF-8 text; give it another one")
    text = _read_text(path, name)
    if path.suffix == ".json":
        text = text.replace("\t", " ")  # YAML forbids the tabs that indent many JSON files
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _refusal(f"{name}:{line}", _syntax_message(error)) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise _refusal(name, f"not valid YAML: {str(error).splitlines()[0]}") from None
    if node is None:
        return Source(name, {})
    reader = _Reader(name)
    data = reader.read(node)
    if not isinstance(data, dict):
        reader.note((), node, "the file must hold a map of sections, such as 'models:'")
    if reader.findings:
        raise ConfigError(reader.findings)
    return Source(name, data, reader.lines)


def _read_text(path: Path, name: str) -> str:
    try:
        if stat.S_ISFIFO(path.stat().st_mode):  # opening one would wait for ever
            raise _refusal(name, "not a regular file")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _refusal(name, f"cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise _refusal(name, f"larger than {MAX_FILE_BYTES // 1024} KiB; is this the right file?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _refusal(f"{name}:{line}", "not UTF-8 text; save the file as UTF-8") from None


def _refusal(place: str, message: str) -> ConfigError:
    return ConfigError([Finding(place, "", message)])


def _syntax_message(error: yaml.MarkedYAMLError) -> str:
    parts = [part for part in (error.context, error.problem) if part]
    advice = "; use spaces, not tabs" if "'\\t'" in (error.problem or "") else ""
    return f"not valid YAML: {', '.join(parts)}{advice}"


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: `1e-3` is a number (YAML 1.1 wants `1.0e-3`), dates are text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
_TIMESTAMP: Final = "tag:yaml.org,2002:timestamp"
_PLAIN_TAGS: Final = {
    f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "map", "seq")
}


class _Reader:
    """Turns nodes into data and collects what is wrong with them."""

    def __init__(self, name: str) -> None:
        self.findings: list[Finding] = []
        self.lines: dict[KeyPath, int] = {}
        self._name = name
        self._nodes_left = _MAX_NODES
        self._scalars = _Loader("")

    def read(self, node: yaml.Node, path: KeyPath = ()) -> Any:
        self._nodes_left -= 1
        self.lines.setdefault(path, node.start_mark.line + 1)
        if len(path) > _MAX_DEPTH or self._nodes_left < 0:
            raise _refusal(self._place(node), "nested too deep, or too many values")
        if node.tag == _TIMESTAMP:
            return str(node.value)
        if node.tag not in _PLAIN_TAGS:
            return self.note(path, node, f"the tag {node.tag} is not allowed; write a plain value")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(child, (*path, i)) for i, child in enumerate(node.value)]
        return self._scalar(node, path)

    def note(self, path: KeyPath, node: yaml.Node, message: str) -> None:
        self.findings.append(Finding(self._place(node), key_path(path), message))

    def _place(self, node: yaml.Node) -> str:
        return f"{self._name}:{node.start_mark.line + 1}"

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node, path)
            if key is None:
                continue
            here = (*path, key)
            if key in result:
                first = self.lines[here]
                self.note(here, key_node, f"the key stands twice; the first is in line {first}")
                continue
            self.lines[here] = key_node.start_mark.line + 1
            result[key] = self.read(value_node, here)
        return result

    def _key(self, node: yaml.Node, path: KeyPath) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self.note(path, node, "a key must be text, not a map or a list")
            return None
        if node.tag == "tag:yaml.org,2002:str":
            if not is_text(node.value):
                self.note(path, node, f"the key {node.value[:40]!r} {NO_TEXT}")
                return None
            return str(node.value)
        self.note(path, node, f"the key {node.value} is not text; write it in quotes")
        return None

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        try:
            value = self._scalars.construct_object(node)
        except (yaml.YAMLError, ValueError):
            return self.note(path, node, f"{node.value[:40]!r} is not a value of type {node.tag}")
        if isinstance(value, str) and not is_text(value):
            return self.note(path, node, f"{value[:40]!r} {NO_TEXT}")
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            return self.note(path, node, f"{node.value[:40]!r} is too large a number")
        return value
