"""The blocks of commands in README.md and docs/guide.md, in the order in which a reader meets them.

A block is fenced as ```sh. A comment before it says who types it (`<!-- as alice -->`; root if none
does), or that it is for a machine with compilers and a package index (`<!-- run by .ci/run -->`).
What is indented is no command, but shows what a session looks like.

As a program (guide.py SECTION) it prints the commands that a section leaves to `.ci/run`, and needs
nothing but Python for that.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = ("README.md", "docs/guide.md")

_BLOCK: Final = re.compile(r"(?:^<!-- (?P<note>.*?) -->\n)?^```sh\n(?P<text>.*?)^```$", re.M | re.S)
_HEADING: Final = re.compile(r"^##+ (.*)$", re.M)


class Block(NamedTuple):
    """`user` types `text`."""

    place: str
    section: str
    text: str
    user: str
    is_run_by_ci: bool


def blocks() -> list[Block]:
    return [block for page in PAGES for block in _blocks_of(page)]


def _blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    found = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("text"))
        note = match["note"] or ""
        found.append(
            Block(
                place=f"{page}:{line}",
                section=_HEADING.findall(text, 0, match.start())[-1],
                text=match["text"],
                user=note.removeprefix("as ") if note.startswith("as ") else "root",
                is_run_by_ci=note == "run by .ci/run",
            )
        )
    return found


def main() -> None:
    """Ends with an error if the section has no such commands."""
    (section,) = sys.argv[1:]
    found = [each.text for each in blocks() if each.is_run_by_ci and each.section == section]
    if not found:
        sys.exit(f"no commands for .ci/run under {section!r}")
    sys.stdout.write("".join(found))


if __name__ == "__main__":
    main()
