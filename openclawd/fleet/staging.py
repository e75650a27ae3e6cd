"""A model's file on fast storage before it is loaded, if the configuration has such.

Owns when a copy is asked for and what becomes of a model that cannot be copied: it is loaded from
where it is, and the log says so. Copying is `openclawd-fetch`'s, which alone may write models.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from openclawctl.wire.errors import Problem
from openclawd.worker.messages import Loading

if TYPE_CHECKING:
    from collections.abc import Callable

    from openclawd.fleet.fetcher import Fetcher

logger = logging.getLogger(__name__)

PHASE: Final = "copying"
_SUFFIX: Final = ".gguf"


class Stager:
    """`folder` is on the fast storage; None: models are loaded from where they are."""

    def __init__(self, fetcher: Fetcher, folder: str | None) -> None:
        self._fetcher = fetcher
        self._folder = folder

    async def stage(self, title: str, path: str, on_progress: Callable[[Loading], object]) -> str:
        """The path to load from. `title` names the worker in the log."""
        file = Path(path)
        if self._folder is None or file.suffix != _SUFFIX or file.is_relative_to(self._folder):
            return path

        def tell(name: str, done: int, total: int | None) -> None:
            del name
            on_progress(Loading(PHASE, min(done / total, 1.0) if total else 0.0))

        try:
            result = await self._fetcher.ask({"type": "copy", "path": path}, tell)
        except Problem as problem:
            logger.warning("%s is loaded from %s, not from a copy: %s", title, path, problem)
            return path
        copy = result.get("path")
        return copy if isinstance(copy, str) and copy else path
