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
    found = (candidate for candidate in candidates if is_model_file(candidate))
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


def is_model_file(path: Path) -> bool:
    """Is a file there, as far as we may see? A name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, in a folder that is closed to us; a NUL, a surrogate
        return False


def _gguf_files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if _can_be_asked_for(path))
    except OSError:
        return []


def _can_be_asked_for(path: Path) -> bool:
    """Only a name of valid Unicode fits into a request, or into the answer that lists it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return path.suffix == MODEL_SUFFIX
