"""The folders in which workers keep prefixes over a restart, seen from outside.

Owns what is removed because no worker will come for it. What the files hold is the worker's
(`worker/prefix_files.py`); here only their age counts.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from openclawd.config import ModelConfig

_SUFFIXES: Final = (".prefix", ".unfinished")

logger = logging.getLogger(__name__)


def sweep(prefix_dir: Path, models: Mapping[str, ModelConfig]) -> None:
    """Remove the files of models that are not configured or keep nothing, and those that are too
    old; then the folders that are empty. Blocks on the disk. What cannot be removed is logged."""
    try:
        for folder in prefix_dir.glob("*"):
            if folder.is_dir() and not folder.is_symlink():
                # Those of a model's second worker are in a folder `NAME+1`, and so on.
                _sweep_folder(folder, models.get(folder.name.partition("+")[0]))
    except OSError as error:
        logger.warning("old saved prefixes in %s may be left: %s", prefix_dir, error)


def _sweep_folder(folder: Path, model: ModelConfig | None) -> None:
    is_kept = model is not None and model.persist_prefixes != "off"
    max_age_s = model.max_prefix_age_s if model is not None and is_kept else -math.inf
    oldest = time.time() - max_age_s
    gone = [
        path
        for path in folder.iterdir()
        if path.suffix in _SUFFIXES and path.lstat().st_mtime < oldest
    ]
    for path in gone:
        path.unlink(missing_ok=True)
    if gone:
        logger.info("%d saved prefixes of model %s are removed", len(gone), folder.name)
    with contextlib.suppress(OSError):  # not empty
        folder.rmdir()
