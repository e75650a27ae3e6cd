import os

from openclawd.config import (
    backend_of,
    find_model_by_name,
    find_model_file,
    is_model_file,
    model_files_by_stem,
)


def write_folder_model(path, weights="model.safetensors"):
    path.mkdir()
    (path / "config.json").touch()
    (path / weights).touch()
    return path


def test_an_absolute_path_is_itself(tmp_path):
    assert find_model_file("/x/y.gguf", [str(tmp_path)]).as_posix() == "/x/y.gguf"


def test_the_first_folder_that_has_the_file_wins(tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    (second / "a.gguf").touch()
    folders = [str(first), str(second)]
    assert find_model_file("a.gguf", folders) == second / "a.gguf"
    (first / "a.gguf").touch()
    assert find_model_file("a.gguf", folders) == first / "a.gguf"
    assert model_files_by_stem(folders) == {"a": first / "a.gguf"}


def test_a_file_that_is_nowhere_gives_a_path_to_complain_about(tmp_path):
    assert find_model_file("a.gguf", [str(tmp_path), "/y"]) == tmp_path / "a.gguf"
    assert str(find_model_file("a.gguf", [])) == "a.gguf"


def test_only_model_files_count_and_missing_folders_hold_none(tmp_path):
    (tmp_path / "readme.txt").touch()
    (tmp_path / "m.v2.gguf").touch()
    assert list(model_files_by_stem(["/nonexistent", str(tmp_path)])) == ["m.v2"]


def test_a_name_that_is_not_unicode_is_left_out(tmp_path):
    with open(os.fsencode(tmp_path) + b"/bad\xff.gguf", "wb"):
        pass
    (tmp_path / "good.gguf").touch()
    assert list(model_files_by_stem([str(tmp_path)])) == ["good"]


def test_a_name_that_no_file_can_have_is_no_file(tmp_path):
    for name in ("x" * 256, "nul\0", "\ud800"):
        assert not is_model_file(tmp_path / name)
    (tmp_path / "file").touch()
    assert not is_model_file(tmp_path / "file" / "below")


def test_a_folder_with_safetensors_is_a_model_by_its_name(tmp_path):
    one = write_folder_model(tmp_path / "org.model-v1")
    parts = write_folder_model(tmp_path / "in-parts", "model.safetensors.index.json")
    write_folder_model(tmp_path / "pickled", "pytorch_model.bin")
    folders = ["/nonexistent", str(tmp_path)]
    assert model_files_by_stem(folders) == {"org.model-v1": one, "in-parts": parts}
    assert find_model_by_name("org.model-v1", folders) == one
    assert find_model_by_name("pickled", folders) is None
    assert find_model_file("in-parts", folders) == parts
    assert backend_of(one) == "torch"


def test_a_file_goes_before_a_folder_of_its_name(tmp_path):
    write_folder_model(tmp_path / "a")
    file = tmp_path / "a.gguf"
    file.touch()
    assert model_files_by_stem([str(tmp_path)]) == {"a": file}
    assert find_model_by_name("a", [str(tmp_path)]) == file
    assert backend_of(file) == "llama"


def test_a_file_without_the_suffix_is_no_model_by_name(tmp_path):
    (tmp_path / "a").touch()
    assert find_model_by_name("a", [str(tmp_path)]) is None
