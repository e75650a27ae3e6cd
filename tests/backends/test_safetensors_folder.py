"""What a model's folder may be, and what is said of one that cannot be a model."""

from __future__ import annotations

import json
import os

import pytest

from openclawd.backends.base import CannotLoad
from openclawd.backends.safetensors_folder import check_folder


def write(folder, **files):
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return str(folder)


def index(*names):
    return {"weight_map": {f"tensor.{n}": name for n, name in enumerate(names)}}


WHOLE = {"config.json": {}, "model.safetensors": ""}


def test_the_weights_are_one_file_or_those_of_the_index(tmp_path):
    path = write(tmp_path, **WHOLE)
    assert check_folder(path) == [tmp_path / "model.safetensors"]
    (tmp_path / "model.safetensors").unlink()
    parts = {"a.safetensors": "", "b.safetensors": ""}
    names = index("b.safetensors", "a.safetensors", "b.safetensors")
    write(tmp_path, **parts, **{"model.safetensors.index.json": names})
    assert check_folder(path) == [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "has no config.json"),
        ({"config.json": {}}, "has no model.safetensors"),
        ({"config.json": {}, "pytorch_model.bin": ""}, "as a pickle (pytorch_model.bin)"),
        ({**WHOLE, "adapter_config.json": {}}, "holds an adapter"),
        ({"config.json": {}, "model.safetensors.index.json": "{"}, "is not JSON"),
        ({"config.json": {}, "model.safetensors.index.json": "[" * 100_000}, "is not JSON"),
        ({"config.json": {}, "model.safetensors.index.json": []}, "is not a JSON object"),
        ({"config.json": {}, "model.safetensors.index.json": {}}, "names no files"),
        (
            {"config.json": {}, "model.safetensors.index.json": index("../x.safetensors")},
            "not a file beside it",
        ),
        ({"config.json": {}, "model.safetensors.index.json": index("x.bin")}, "'x.bin'"),
        (
            {"config.json": {}, "model.safetensors.index.json": index("x.safetensors")},
            "x.safetensors does not exist",
        ),
    ],
)
def test_what_cannot_be_a_model(tmp_path, files, said):
    with pytest.raises(CannotLoad) as failure:
        check_folder(write(tmp_path, **files))
    assert said in failure.value.message
    assert failure.value.permanent


def test_a_pickle_comes_with_the_way_to_convert_it(tmp_path):
    with pytest.raises(CannotLoad) as failure:
        check_folder(write(tmp_path, **{"config.json": {}, "model.pt": ""}))
    assert "save_pretrained" in failure.value.hint


def test_what_is_no_folder_or_no_plain_file(tmp_path):
    for path, said in ((tmp_path / "x", "does not exist"), (__file__, "is not a folder")):
        with pytest.raises(CannotLoad, match=said):
            check_folder(str(path))
    write(tmp_path, **{"config.json": {}})
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CannotLoad, match="not a regular file"):
        check_folder(str(tmp_path))
