"""Where models are: by path in the configuration, by name in `model_paths`.

A model is a GGUF file, whose name is the file's without .gguf, or a folder with safetensors, whose
name is the folder's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from openclawd.config.schema import Config, ModelConfig

MODEL_SUFFIX: Final = ".gguf"

_DESCRIPTION: Final = "config.json"
_WEIGHTS: Final = ("model.safetensors", "model.safetensors.index.json")
"""One of these is in every folder that transformers wrote: the weights, or the list of files."""


def find_model_file(path: str, model_paths: Sequence[str]) -> Path:
    """The file or folder a model's `path` means: itself when absolute, else the first one in
    `model_paths`.

    One that is nowhere gives the first place it could be, so that the error names a real path.
    """
    if Path(path).is_absolute():
        return Path(path)
    candidates = [Path(folder) / path for folder in model_paths]
    found = (each for each in candidates if is_model_file(each) or is_model_folder(each))
    return next(found, candidates[0] if candidates else Path(path))


def find_model_by_name(name: str, model_paths: Sequence[str]) -> Path | None:
    """The model in `model_paths` that has this name: a file before a folder."""
    file = find_model_file(f"{name}{MODEL_SUFFIX}", model_paths)
    if is_model_file(file):
        return file
    folder = find_model_file(name, model_paths)
    return folder if is_model_folder(folder) else None


def model_files_by_stem(model_paths: Sequence[str]) -> dict[str, Path]:
    """Every model in `model_paths` by its name; earlier folders win. Blocks on the disk.

    Folders that are missing or unreadable hold no models.
    """
    found: dict[str, Path] = {}
    for folder in model_paths:
        paths = _in_folder(Path(folder))
        files = {path.stem: path for path in paths if path.suffix == MODEL_SUFFIX}
        folders = {path.name: path for path in paths if is_model_folder(path)}
        found = {**folders, **files, **found}
    return found


def missing_files(config: Config) -> Iterator[str]:
    """A sentence on each file that a configured model needs and that is not there yet. Blocks on
    the disk."""
    for name, model in config.models.items():
        for path in _needed_by(model):
            file = find_model_file(path, config.model_paths)
            if _is_missing(file):
                yield f"model {name}: there is no file {file}"


def backend_of(path: Path) -> str:
    """Which backend serves what is at `path`: a folder is torch's."""
    try:
        return "torch" if path.is_dir() else "llama"
    except (OSError, ValueError):
        return "llama"


def is_model_file(path: Path) -> bool:
    """Is a file there, as far as we may see? A name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, in a folder that is closed to us; a NUL, a surrogate
        return False


def is_model_folder(path: Path) -> bool:
    """Is there a folder with a description and weights?"""
    has_weights = any(is_model_file(path / name) for name in _WEIGHTS)
    return has_weights and is_model_file(path / _DESCRIPTION)


def _needed_by(model: ModelConfig) -> list[str]:
    paths = [model.path, model.speculation.draft_model]
    return [path for path in paths if path] + [each.path for each in model.adapters.values()]


def _is_missing(path: Path) -> bool:
    """Not so in a folder that is closed to us: then it is not known."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def _in_folder(folder: Path) -> list[Path]:
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
    return True
