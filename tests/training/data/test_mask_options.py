"""Colour maps and id maps: from files as they are published, or from the command line."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from training.data.colour_maps import class_names_of_colours, ids_of_colours, read_colour_map
from training.data.id_maps import read_id_map
from training.data.masks import MaskReader, voc_palette
from training.data.sources import load_source

SKY, SEA, VOID = (70, 130, 180), (0, 0, 142), (0, 0, 0)
CLASSES = [["sky"], ["sea", "ocean"]]


@pytest.mark.parametrize(
    "name, content",
    [
        ("colour_map.txt", "sky 70 130 180\nocean 0 0 142\nvoid 0 0 0\n"),
        ("label_colors.txt", "70 130 180\tsky\n0 0 142\t\tsea\n0 0 0\tVoid\n"),
        ("class_dict.csv", "name,r,g,b\nsky,70,130,180\nsea,0,0,142\nunlabelled,0,0,0\n"),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nsky:70,130,180::\nsea:0,0,142::\nignore:0,0,0::\n"),
        ("ids.txt", "# id red green blue\n0 70 130 180\n1 0 0 142\n255 0 0 0\n"),
        ("map.json", json.dumps({"sky": SKY, "sea": "#00008e", "255": [0, 0, 0]})),
        ("map.json", json.dumps([{"name": "sky", "color": SKY}, {"id": 1, "color": SEA}, {"name": "void", "color": VOID}])),
    ],
)  # fmt: skip
def test_every_published_form_gives_the_same_ids(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert ids_of_colours(read_colour_map(tmp_path / name), CLASSES) == {SKY: 0, SEA: 1, VOID: 255}


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.txt", "sky 70 130 180\nsea\n", ["a.txt, line 2", "'sea'", "sky 128 128 128"]),
        ("a.txt", "sky 70 130 280\n", ["line 1", "0 to 255"]),
        ("a.txt", "sky 70 130 180\nsea 70 130 180\n", ["line 2", "'sea'", "'sky' already"]),
        ("a.txt", "# nothing\n", ["names no colour"]),
        ("a.json", '{"sky": [1, 2]}', ["'sky' is no colour"]),
        ("a.json", "{", ["is no JSON"]),
    ],
)  # fmt: skip
def test_colour_maps_that_cannot_be_right(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as error:
        read_colour_map(tmp_path / name)
    assert all(word in str(error.value) for word in words), str(error.value)
    with pytest.raises(ValueError, match="no colour map"):
        read_colour_map(tmp_path / "missing.txt")


def test_a_colour_of_no_class_is_an_error_and_a_class_without_a_colour_is_said(caplog):
    with pytest.raises(ValueError, match="'car', which is none of the 2 classes"):
        ids_of_colours({SKY: "car"}, CLASSES)
    with caplog.at_level(logging.WARNING):
        assert ids_of_colours({SKY: "sky"}, CLASSES) == {SKY: 0}
    assert "no colour for sea" in caplog.text


def test_names_come_from_the_map_where_nothing_else_names_classes():
    assert class_names_of_colours({VOID: "void", SKY: "sky", SEA: "sea"}) == [["sky"], ["sea"]]
    assert class_names_of_colours({SKY: "0", SEA: "1"}) is None


def colour_folder(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    pixels = np.array([[SKY, SEA, VOID], [SEA, SKY, SEA]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    Image.fromarray(pixels).save(tmp_path / "masks" / "a.png")
    return tmp_path


EXPECTED = [[0, 1, 255], [1, 0, 1]]


def test_masks_stored_as_colours(tmp_path):
    folder = colour_folder(tmp_path)
    with pytest.raises(ValueError, match="--colour_map"):
        load_source(str(folder), "train", classes_file="sky, sea")[0]
    (tmp_path / "my.txt").write_text("sky 70 130 180\nsea 0 0 142\nvoid 0 0 0\n")
    source = load_source(str(folder), "train", colour_map=str(tmp_path / "my.txt"))
    assert json.loads(json.dumps(source.description)) == source.description
    assert source.class_names == ["sky", "sea"]
    np.testing.assert_array_equal(source[0]["mask"], EXPECTED)
    (tmp_path / "my.txt").rename(tmp_path / "colour_map.txt")  # found by its name
    np.testing.assert_array_equal(
        load_source(str(folder), "train", classes_file="sea, sky")[0]["mask"], [[1, 0, 255], [0, 1, 0]]
    )


def test_pascal_vocs_colours_are_found_in_the_masks(tmp_path):
    """A mask of grey colours alone, as of a bus, is then no map of ids either."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    palette = np.array([*voc_palette(256)], dtype=np.uint8)
    palette[255] = (224, 224, 192)
    expected = {"a": [[0, 7, 7]], "b": [[15, 255, 20]]}
    for key, ids in expected.items():
        for name in ("images", "masks"):
            Image.fromarray(palette[np.array(ids)]).save(tmp_path / name / f"{key}.png")
    source = load_source(str(tmp_path), "train")
    for sample in (source[0], source[1]):
        np.testing.assert_array_equal(sample["mask"], expected[sample["key"]])


def test_a_palette_in_another_order_is_read_by_its_colours(tmp_path):
    """Editors renumber palettes when they save; a colour map says what the colours are."""
    image = Image.frombytes("P", (3, 2), bytes([2, 1, 0, 1, 2, 1]))
    image.putpalette([*VOID, *SEA, *SKY])
    image.save(tmp_path / "mask.png")
    reader = MaskReader(2, {SKY: 0, SEA: 1, VOID: 255})
    np.testing.assert_array_equal(reader(str(tmp_path / "mask.png"), "a"), EXPECTED)
    assert reader.kinds == {"palette colours of the colour map"}


@pytest.mark.parametrize(
    "given", [{22: 255, "rest": "same"}, {"22": "255", "rest": "same"}, "22:255,rest:same", "22:255, rest:same"]
)
def test_id_maps_from_the_command_line_and_from_files(tmp_path, given):
    assert read_id_map(given) == {22: 255, "rest": "same"}
    (tmp_path / "map.json").write_text('{"22": 255, "rest": "same"}')
    assert read_id_map(tmp_path / "map.json") == read_id_map(given)


@pytest.mark.parametrize("given", ["22", "22:x", "a:1", "rest:other", "", "missing.json"])
def test_id_maps_that_cannot_be_right(given):
    with pytest.raises(ValueError, match="id.map"):
        read_id_map(given)


def test_an_id_map_need_not_list_every_id():
    ids = Image.fromarray(np.array([[0, 22, 7], [255, 1, 22]], dtype=np.uint8))
    expected = {"same": [[0, 5, 7], [255, 1, 5]], "255": [[255, 5, 255], [255, 255, 5]]}
    for rest, mapped in expected.items():
        np.testing.assert_array_equal(MaskReader(id_map=read_id_map(f"22:5,rest:{rest}"))(ids, "a"), mapped)
    with pytest.raises(ValueError, match=r"\[0, 1, 7\].*rest:same"):
        MaskReader(id_map=read_id_map("22:5"))(ids, "a")


def test_more_classes_than_can_be_told_apart_are_refused():
    with pytest.raises(ValueError, match="300 classes, but at most 255"):
        MaskReader(300)


def test_sixteen_bit_masks_with_their_own_ignore_value(tmp_path):
    wide = np.array([[0, 1], [65_535, 1]], dtype=np.uint16)
    Image.fromarray(wide).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(MaskReader(2, ignore_label=65_535)(str(tmp_path / "mask.png"), "a"), [[0, 1], [255, 1]])
