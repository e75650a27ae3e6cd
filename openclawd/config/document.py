"""The tables of `docs/configuration.md`, from the schema.

`python -m openclawd.config.document docs/configuration.md` writes them anew; a test tells when that
is needed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

from openclawd.config.reference import all_keys

_TABLE = re.compile(r"(<!-- keys of (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_ROOT: Final = "(top)"


def with_tables(page: str) -> str:
    """A Markdown page with every table between `<!-- keys of SECTION -->` and `<!-- end -->` as the
    schema has it now."""
    return _TABLE.sub(lambda match: f"{match[1]}{_table(match[2])}{match[3]}", page)


def _table(section: str) -> str:
    prefix = "" if section == _ROOT else f"{section}."
    keys = [info for info in all_keys() if info.path.startswith(prefix)]
    own = [info for info in keys if "." not in info.path.removeprefix(prefix)]
    rows = [
        f"| `{info.path.removeprefix(prefix)}` | {info.default} | {info.allowed} | {info.meaning} |"
        for info in own
    ]
    return "\n".join(
        ["", "| key | default | allowed | meaning |", "|---|---|---|---|", *rows, "", ""]
    )


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(with_tables(document.read_text()))
