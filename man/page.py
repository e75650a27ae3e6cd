"""The manual pages that say what a page of `docs/` says: made from it, so that there is one text.

`python man/page.py` writes all of them anew; a test tells when that is needed. Knows as much of
Markdown as these pages have (headings, paragraphs, lists, tables, code, emphasis, links), and of
man(7) what they need.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT: Final = Path(__file__).parents[1]
DATE: Final = "2026-11-30"
WIDTH: Final = 78  # bytes in an input line, with room for an escape


class Page(NamedTuple):
    """`source` of docs/, and what the head and the end of the page say beside it."""

    source: str
    name: str
    section: int
    volume: str
    purpose: str
    see_also: tuple[str, ...]

    @property
    def file(self) -> Path:
        return ROOT / "man" / f"{self.name}.{self.section}"


PAGES: Final = (
    Page(
        "configuration.md",
        "openclawd.yaml",
        5,
        "File Formats",
        "the configuration of openclawd",
        ("openclawctl(1)", "openclawd(8)"),
    ),
    Page(
        "protocol.md",
        "openclawd-protocol",
        7,
        "Miscellaneous",
        "what passes over the socket of openclawd",
        ("openclawctl(1)", "openclawd.yaml(5)", "openclawd(8)"),
    ),
)


def rendered(page: Page) -> str:
    package = (ROOT / "openclawctl" / "__init__.py").read_text()
    (version,) = re.findall(r'__version__: Final = "([^"]+)"', package)
    name = _code(page.name)
    head = [
        r".\" Made by man/page.py from docs/" + page.source + ": change that.",
        f'.TH {name.upper()} {page.section} {DATE} "openclawd {version}" "{page.volume}"',
        ".SH NAME",
        f"{name} \\- {page.purpose}",
        ".SH DESCRIPTION",
    ]
    body = _blocks((ROOT / "docs" / page.source).read_text())
    references = ",\n".join(_reference(each) for each in page.see_also)
    return "\n".join([*head, *body, ".SH SEE ALSO", references]) + "\n"


def _reference(page: str) -> str:
    name, section = page.rstrip(")").split("(")
    return f".BR {_code(name)} ({section})"


# ---- blocks ----


def _blocks(markdown: str) -> list[str]:
    """The lines of man(7) for a page; what each block of it becomes."""
    lines = re.sub(r"<!--.*?-->\n?", "", markdown, flags=re.DOTALL).splitlines()
    out: list[str] = []
    at = 0
    is_after_heading = True
    while at < len(lines):
        line = lines[at]
        end = at + 1
        if not line.strip():
            at = end
            continue
        if match := re.match(r"(#+) (.*)", line):
            out += _heading(len(match[1]), match[2])
        elif line.startswith("```"):
            while not lines[end].startswith("```"):
                end += 1
            out += _example(lines[at + 1 : end])
            end += 1
        elif line.startswith("    "):
            end = _run(lines, end, lambda each: each.startswith("    ") or not each.strip())
            out += _example(textwrap.dedent("\n".join(lines[at:end])).splitlines())
        elif line.startswith("|"):
            end = _run(lines, end, lambda each: each.startswith("|"))
            out += _table(lines[at:end])
        elif re.match(r"(-|\d+\.) ", line):
            end = _run(lines, end, lambda each: each.startswith("  "))
            out += _item(lines[at:end])
        else:
            end = _run(lines, end, _is_prose)
            out += [*([] if is_after_heading else [".PP"]), *_prose(" ".join(lines[at:end]))]
        is_after_heading = line.startswith("#")
        at = end
    return out


def _run(lines: list[str], start: int, belongs: Callable[[str], bool]) -> int:
    """The end of the lines from `start` that belong together."""
    end = start
    while end < len(lines) and belongs(lines[end]):
        end += 1
    return end


def _is_prose(line: str) -> bool:
    return bool(line.strip()) and not re.match(r"#|```|\||- |\d+\. |    ", line)


def _heading(level: int, text: str) -> list[str]:
    if level == 1:
        return []
    plain = _escaped(re.sub(r"`", "", text))
    return [f".SH {plain.upper()}" if level == 2 else f".SS {plain}"]


def _example(lines: list[str]) -> list[str]:
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    return [".PP", ".EX", *(_protected(_code(line)) for line in lines), ".EE"]


def _item(lines: list[str]) -> list[str]:
    mark, _, first = lines[0].partition(" ")
    tag = r".IP \(bu 2" if mark == "-" else f".IP {mark} 4"
    return [tag, *_prose(" ".join([first, *(line.strip() for line in lines[1:])]))]


def _table(lines: list[str]) -> list[str]:
    """A definition for each row: what it is called, the words, the other columns in parentheses."""
    header, _, *rows = [_cells(line) for line in lines]
    out: list[str] = []
    name = ""
    is_nested = any(not cells[0] for cells in rows)
    for cells in rows:
        name = cells[0] or name
        num_names = 2 if is_nested else 1
        tag = " ".join(filter(None, [name, *cells[1:num_names]]))
        short = [
            f"{title}: {cell}"
            for title, cell in zip(header[num_names:-1], cells[num_names:-1], strict=True)
            if cell
        ]
        text = " ".join(filter(None, [cells[-1], f"({'; '.join(short)})" if short else ""]))
        out += [".TP", *_prose(tag, width=10_000), *(_prose(text) or [r"\&"])]
    return out


def _cells(line: str) -> list[str]:
    parts = re.split(r"(?<!\\)\|", line.strip().strip("|"))
    return [part.strip().replace(r"\|", "|") for part in parts]


# ---- text ----


def _prose(text: str, *, width: int = WIDTH) -> list[str]:
    """Input lines that fit, with fonts and escapes."""
    words = _inline(text).split()
    lines: list[str] = []
    for word in words:
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and _num_bytes(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return [_protected(line) for line in lines]


def _num_bytes(line: str) -> int:
    """As mandoc counts them: what is not ASCII it reads as an escape, such as \\[u2192]."""
    return sum(8 if ord(character) > 127 else 1 for character in line)


_TOKEN: Final = re.compile(
    r"`(?P<code>[^`]+)`|\*\*(?P<bold>.+?)\*\*|(?<![\w*])\*(?P<italic>[^*\s][^*]*)\*(?![\w*])"
    r"|\[(?P<text>[^\]]+)\]\((?P<target>[^)\s]+)\)"
)


def _inline(text: str) -> str:
    out, at = "", 0
    for match in _TOKEN.finditer(text):
        out += _escaped(text[at : match.start()]) + _marked(match)
        at = match.end()
    return out + _escaped(text[at:])


def _marked(match: re.Match[str]) -> str:
    if (code := match["code"]) is not None:
        return rf"\fB{_code(code)}\fR"
    if (bold := match["bold"]) is not None:
        return rf"\fB{_escaped(re.sub('`', '', bold))}\fR"
    if (italic := match["italic"]) is not None:
        return rf"\fI{_escaped(italic)}\fR"
    address = f" <{_code(match['target'])}>" if match["target"].startswith("http") else ""
    return _inline(match["text"]) + address


def _escaped(text: str) -> str:
    return text.replace("\\", r"\e")


def _code(text: str) -> str:
    """As it is typed: a hyphen is the ASCII one."""
    return _escaped(text).replace("-", r"\-")


def _protected(line: str) -> str:
    """No line of text is taken for a request."""
    return rf"\&{line}" if line.startswith((".", "'")) else line


def main() -> None:
    for page in PAGES:
        page.file.write_text(rendered(page))


if __name__ == "__main__":
    main()
