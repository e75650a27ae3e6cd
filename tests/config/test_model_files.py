import os

from openclawd.config import find_model_file, is_model_file, model_files_by_stem


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
