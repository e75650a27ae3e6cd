"""The blocks of commands in README.md and docs/guide.md, in the order in which a reader meets them.

A block is fenced as ```sh. A comment before it says who types it (`<!-- as alice -->`; root if none
does) or why nobody does in a test (`<!-- not run: REASON -->`). What is indented is no command, but
shows what a session looks like.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = ("README.md", "docs/guide.md")

_BLOCK: Final = re.compile(r"(?:^<!-- (?P<note>.*?) -->\n)?^```sh\n(?P<text>.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """`user` types `text`. `not_run` says why no test does; it is empty where one does."""

    place: str
    text: str
    user: str
    not_run: str


def blocks() -> list[Block]:
    return [block for page in PAGES for block in _blocks_of(page)]


def _blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    found = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("text"))
        note = match["note"] or ""
        user = note.removeprefix("as ") if note.startswith("as ") else "root"
        not_run = note.removeprefix("not run: ") if note.startswith("not run: ") else ""
        found.append(Block(f"{page}:{line}", match["text"], user, not_run))
    return found
