"""Where model files are: by path in the configuration, by stem in `model_paths`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

MODEL_SUFFIX: Final = ".gguf"


def find_model_file(path: str, model_paths: Sequence[str]) -> Path:
    """The file a model's `path` means: itself when absolute, else the first one in `model_paths`.

    A file that is nowhere gives the first place it could be, so that the error names a real path.
    """
    if Path(path).is_absolute():
        return Path(path)
    candidates = [Path(folder) / path for folder in model_paths]
    found = (candidate for candidate in candidates if candidate.is_file())
    return next(found, candidates[0] if candidates else Path(path))


def model_files_by_stem(model_paths: Sequence[str]) -> dict[str, Path]:
    """Every model file in `model_paths` by its stem; earlier folders win. Blocks on the disk.

    Folders that are missing or unreadable hold no models.
    """
    found: dict[str, Path] = {}
    for folder in model_paths:
        for path in _gguf_files(Path(folder)):
            found.setdefault(path.stem, path)
    return found


def _gguf_files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == MODEL_SUFFIX)
    except OSError:
        return []
