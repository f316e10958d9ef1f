"""A file or folder is the old one or the new one, never half of it."""

import pytest

from hf_clipseg.atomic import claim_folder, replace_file, replace_folder


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


def test_processes_that_write_one_file_do_not_share_a_temporary_name(tmp_path, monkeypatch):
    path = tmp_path / "shard.npy"
    with replace_file(path, per_process=True) as mine:
        mine.write_text("mine")
        monkeypatch.setattr("os.getpid", lambda: -1)
        with replace_file(path, per_process=True) as theirs:
            theirs.write_text("theirs")
        assert path.read_text() == "theirs" and mine.read_text() == "mine"
    assert path.read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["shard.npy"]


def test_the_slower_of_two_processes_uses_the_folder_that_the_other_wrote(tmp_path):
    path = tmp_path / "cache"
    with claim_folder(path) as mine:
        (mine / "features.txt").write_text("second")
        path.mkdir()
        (path / "features.txt").write_text("first")
    assert (path / "features.txt").read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["cache"]


def test_a_folder_that_cannot_be_claimed_is_an_error_and_so_is_what_happens_inside(tmp_path):
    (tmp_path / "cache").write_text("a file is in the way")
    with pytest.raises(OSError), claim_folder(tmp_path / "cache"):
        pass
    with pytest.raises(RuntimeError), claim_folder(tmp_path / "other"):
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["cache"]
