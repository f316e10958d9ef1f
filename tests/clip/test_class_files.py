"""Class files as data sets and papers publish them."""

import logging

import pytest

from hf_clipseg.clip.class_files import class_names_of_argument, read_class_file

PUBLISHED = "sky, wall, bed\naeroplane\n\ntelevision monitor, tv monitor,  television\nbed\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", "sky\n\n boat, ship \n"),
        ("classes.txt", "\ufeff# comment\nsky\nboat|ship\n"),
        ("classes.txt", "sky\nboat, ship, Boat,ship\n"),
        ("classes.txt", "0 sky\n1 boat, ship\n"),
        ("classes.txt", "1: boat|ship\n0: sky\n"),
        ("classes.txt", "1. sky\n2. boat;ship\n"),
        ("classes.csv", "Idx,Ratio,Name\n2,0.1,boat;ship\n1,0.2,sky\n"),
        ("class_dict.csv", "name,r,g,b\nsky,1,2,3\nboat|ship,4,5,6\n"),
        ("_classes.csv", 'Pixel Value, Class\n0, sky\n1, "boat, ship"\n'),
        ("classes.json", '["sky", "boat, ship"]'),
        ("classes.json", '{"classes": ["sky", ["boat", "ship"]], "ignore": 255}'),
        ("id2label.json", '{"1": "boat|ship", "0": "sky"}'),
    ],
)  # fmt: skip
def test_every_published_form_gives_the_same_classes(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_class_file(tmp_path / name) == [["sky"], ["boat", "ship"]]
    assert class_names_of_argument(str(tmp_path / name)) == [["sky"], ["boat", "ship"]]


def test_published_synonyms_may_name_another_class_and_it_is_said(tmp_path, caplog):
    (tmp_path / "cls.txt").write_text(PUBLISHED)
    with caplog.at_level(logging.WARNING):
        classes = read_class_file(tmp_path / "cls.txt")
    assert classes[0] == ["sky", "wall", "bed"] and classes[2:] == [["television monitor", "tv monitor", "television"], ["bed"]]
    assert "bed stand in several classes" in caplog.text


@pytest.mark.parametrize(("first", "hint"), [(0, False), (1, True)])
def test_numbers_in_front_are_ids_and_said_to_be(tmp_path, caplog, first, hint):
    (tmp_path / "c.txt").write_text(f"{first} sky\n{first + 1} 3d model\n")
    with caplog.at_level(logging.WARNING):
        assert read_class_file(tmp_path / "c.txt") == [["sky"], ["3d model"]]
    assert "taken as ids" in caplog.text and ("--reduce_labels" in caplog.text) == hint


def test_a_number_in_front_of_one_name_is_part_of_it(tmp_path):
    (tmp_path / "c.txt").write_text("sky\n2 wheeler\n")
    assert read_class_file(tmp_path / "c.txt") == [["sky"], ["2 wheeler"]]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("c.txt", "sky\n\nboat\nSky\n", ["c.txt", "line 4", "'Sky'", "line 1"]),
        ("c.txt", "sky\n,\n", ["line 2", "without a name"]),
        ("c.txt", "0 sky\n2 boat\n", ["without gaps", "[0, 2]"]),
        ("c.txt", "sky, sea, boat\n", ["one line", "one class per line"]),
        ("c.txt", "# nothing\n", ["names no class"]),
        ("c.json", '{"0": "sky", "2": "sea"}', ["without gaps"]),
        ("c.json", '{"sky": "sea"}', ["expected a list"]),
        ("c.json", '["sky", ["boat"], "sky"]', ["entry 2", "entry 0"]),
        ("c.json", "sky", ["c.json"]),
        ("c.csv", "id,name\n0,sky\n0,sea\n", ["without gaps"]),
    ],
)  # fmt: skip
def test_files_that_cannot_be_right_are_refused_with_the_place(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as error:
        read_class_file(tmp_path / name)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_file_that_is_missing_is_not_a_class_name(tmp_path):
    with pytest.raises(ValueError, match="no class file"):
        class_names_of_argument(str(tmp_path / "classes.txt"))
    assert class_names_of_argument("sky, boat|ship") == [["sky"], ["boat", "ship"]]
