"""What is wrong with a configuration, as sentences for the person who wrote it."""

from __future__ import annotations

from dataclasses import dataclass

from openclawd.printable import printable


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake. `place` is `file:line`, the file alone, or the option it came from."""

    place: str
    key_path: str
    message: str

    def __str__(self) -> str:
        """In one line, whatever the file and its keys are called."""
        parts = (self.place, self.key_path, self.message)
        return printable(": ".join(part for part in parts if part))


class ConfigError(Exception):
    """The configuration cannot be used. `str()` is every finding on a line of its own."""

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__("\n".join(str(finding) for finding in findings))
        self.findings = findings


def shown(value: object) -> str:
    """A value as the file wrote it, short enough for one line."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case str():
            return repr(_short(value))
        case dict():
            return "a map"
        case list() | tuple():
            return "a list"
        case _:
            return _short(str(value))


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
