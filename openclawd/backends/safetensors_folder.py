"""What can be said about a model's folder without an ML library: is it one, whole and safe.

Owns the sentences for folders that cannot be a model, and the rule that no pickle is ever read.
Reads config.json and the index of the weights, both hostile input, and no weights; a tensor file's
own header is left to safetensors.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, Final, NoReturn

from openclawd.backends.base import CannotLoad, unreadable

CONFIG: Final = "config.json"
_WEIGHTS: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_ADAPTER: Final = "adapter_config.json"
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MAX_JSON_BYTES: Final = 64 * 1024 * 1024
"""The largest index there is names some ten thousand tensors in 3 MB."""

_GET_ANOTHER: Final = "copy or download the folder again and compare the checksums"
_CONVERT: Final = (
    'convert it where it may do no harm: python -c "from transformers import AutoModel as M;'
    " M.from_pretrained('FOLDER').save_pretrained('NEW_FOLDER')\", or get the safetensors files of"
    " this model"
)


def check_folder(path: str) -> list[Path]:
    """The safetensors files of the model in a folder. Raises `CannotLoad` with one sentence if this
    cannot be a whole model."""
    folder = Path(path)
    try:
        names = {each.name for each in folder.iterdir()}
    except OSError as error:
        _fail_to_read(folder, error)
    if CONFIG not in names:
        raise _unusable(
            f"{folder} has no {CONFIG}", "give the path of a folder that transformers can load"
        )
    if _ADAPTER in names:  # transformers would load another model, wherever that file says
        raise _unusable(
            f"{folder} holds an adapter, not a whole model ({_ADAPTER})",
            "merge it into its model with peft's merge_and_unload, and give that folder",
        )
    files = _files_of_weights(folder, names)
    for file in files:
        _check_file(file)
    return files


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model's folder. Raises `CannotLoad`."""
    try:
        _check_file(path)
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise _unusable(f"{path} is larger than any such file", _GET_ANOTHER)
        value = json.loads(path.read_text())
    except OSError as error:
        _fail_to_read(path, error)
    except (ValueError, RecursionError):
        raise _unusable(f"{path} is not JSON", _GET_ANOTHER) from None
    if not isinstance(value, dict):
        raise _unusable(f"{path} is not a JSON object", _GET_ANOTHER)
    return value


def _files_of_weights(folder: Path, names: set[str]) -> list[Path]:
    if _WEIGHTS in names:
        return [folder / _WEIGHTS]
    if _INDEX in names:
        return [folder / name for name in _names_in_index(folder / _INDEX)]
    if pickles := sorted(name for name in names if name.endswith(_PICKLES)):
        raise _unusable(
            f"{folder} has its weights as a pickle ({pickles[0]}), which can run any program when"
            " it is read",
            _CONVERT,
        )
    raise _unusable(f"{folder} has no {_WEIGHTS} and no {_INDEX}", _GET_ANOTHER)


def _names_in_index(index: Path) -> list[str]:
    """Only names of safetensors files in the same folder: an index may say anything."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise _unusable(f"{index} names no files", _GET_ANOTHER)
    names = set(map(str, files.values()))
    for name in names:
        if "/" in name or not name.endswith(".safetensors"):
            raise _unusable(f"{index} names {name[:100]!r}, not a file beside it", _GET_ANOTHER)
    return sorted(names)


def _check_file(path: Path) -> None:
    """It is there, a plain file, and may be read: a FIFO in its place would hold up the open."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _unusable(f"{path} is not a regular file", _GET_ANOTHER)
        with path.open("rb"):
            pass
    except OSError as error:
        _fail_to_read(path, error)


def _fail_to_read(path: Path, error: OSError) -> NoReturn:
    match error:
        case FileNotFoundError():
            raise _unusable(
                f"{path} does not exist",
                "put it there, or correct its path in the configuration or --models",
            ) from None
        case NotADirectoryError():
            raise _unusable(
                f"{path} is not a folder",
                "give the folder that holds config.json and the safetensors files; GGUF files are"
                " served by the llama backend",
            ) from None
        case PermissionError():
            raise _unusable(
                f"the daemon's user may not read {path}",
                f"check its mode and that of every directory above it: namei -l {path}",
            ) from None
    raise unreadable(str(path), error) from None


def _unusable(message: str, hint: str) -> CannotLoad:
    return CannotLoad(message, hint=hint, permanent=True)
