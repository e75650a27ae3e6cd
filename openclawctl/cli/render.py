"""What needs a terminal library: the progress line, charts, a screen that is drawn again and again.
The only module that imports rich."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.bar import Bar
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from openclawctl.cli.shell import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

WIDTH_WITHOUT_TERMINAL: Final = 100


class WaitingLine:
    """One line on standard error that says what is being waited for, and is gone afterwards."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[percent]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, percent="")
        self._progress.start()

    def update(self, text: str, fraction: float | None) -> None:
        """`fraction` in [0, 1], or None when nobody knows."""
        self._progress.update(
            self._task,
            description=one_line(text),
            total=None if fraction is None else 1.0,
            completed=fraction or 0.0,
            percent="" if fraction is None else f"{fraction:.0%}",
        )

    def stop(self) -> None:
        self._progress.stop()


class Screen:
    """The whole terminal, drawn again and again; as it was before when the block ends."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, screen=True, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, traceback)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, as they are now."""
        return self._console.size.width, self._console.size.height

    def draw(self, lines: Sequence[tuple[str, bool]]) -> None:
        """Lines of text, and whether each is a title. What is too long is not shown."""
        width, height = self.size
        texts = [
            Text(one_line(text)[:width], style="bold" if is_title else "")
            for text, is_title in lines[:height]
        ]
        self._live.update(Text("\n", no_wrap=True).join(texts), refresh=True)


def print_bars(title: str, bars: Sequence[tuple[str, float, str]]) -> None:
    """Bars from top to bottom on standard output: a label, a value of 0 or more, and the value as
    text."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH_WITHOUT_TERMINAL)
    most = max((value for _, value, _ in bars), default=0) or 1
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(max_width=console.width // 3, no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(ratio=1)
    for label, value, text in bars:
        table.add_row(Text(one_line(label)), Text(text), Bar(most, 0, value))
    console.print(Text(one_line(title)))
    console.print(table)
