"""A file or folder is the old one or the new one, never half of it."""

import pytest

from hf_clipseg.atomic import replace_file, replace_folder


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "scores.json"
    with replace_file(path) as partial:
        partial.write_text("1")
        assert not path.exists()
    assert path.read_text() == "1"
    assert [file.name for file in path.parent.iterdir()] == ["scores.json"]


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), replace_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json"]


def test_a_folder_takes_the_place_of_the_old_one_whole(tmp_path):
    path = tmp_path / "final"
    path.mkdir()
    (path / "stale.txt").write_text("old")
    with replace_folder(path) as partial:
        (partial / "model.txt").write_text("new")
        assert [file.name for file in path.iterdir()] == ["stale.txt"]
    assert [file.name for file in path.iterdir()] == ["model.txt"]
    assert [file.name for file in tmp_path.iterdir()] == ["final"]


def test_an_error_leaves_the_old_folder_and_the_next_write_starts_empty(tmp_path):
    path = tmp_path / "final"
    path.mkdir()
    (path / "model.txt").write_text("old")
    with pytest.raises(RuntimeError), replace_folder(path) as partial:
        (partial / "model.txt").write_text("half")
        raise RuntimeError
    assert (path / "model.txt").read_text() == "old"
    (tmp_path / ".final.partial").mkdir()
    (tmp_path / ".final.partial" / "of a killed run").write_text("")
    with replace_folder(path) as partial:
        assert not any(partial.iterdir())
        (partial / "model.txt").write_text("new")
    assert [file.name for file in path.iterdir()] == ["model.txt"]
