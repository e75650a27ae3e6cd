"""What needs a terminal library: the progress line. The only module that imports rich."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from openclawctl.cli.shell import printable


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
            description=printable(text),
            total=None if fraction is None else 1.0,
            completed=fraction or 0.0,
            percent="" if fraction is None else f"{fraction:.0%}",
        )

    def stop(self) -> None:
        self._progress.stop()
