"""Every layout of a folder that is understood, its splits, and how a folder without splits is divided."""

import json

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from training.data.coco_json import decode_runs, unpack_counts
from training.data.mask_layouts import MASK_LAYOUTS
from training.data.presets import VOC_CLASSES
from training.data.rows import split_names
from training.data.sources import load_source

CLASSES = "sky, sea, sand, grass, boat, car, dog, cat"


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)


def photo(value):
    return np.full((2, 3, 3), value)


def label(value):
    return np.full((2, 3), value)


def keys(folder, split, **options):
    source = load_source(str(folder), split, classes_file=CLASSES, **options)
    return [source[index]["key"] for index in range(len(source))]


def flat_folder(tmp_path, count=20):
    for index in range(count):
        save(tmp_path / "images" / f"{index:02}.png", photo(index))
        save(tmp_path / "masks" / f"{index:02}.png", label(index % 8))
    return tmp_path


# ---- splits


def test_a_split_that_does_not_exist_is_an_error_that_lists_those_that_do(tmp_path):
    for split, value in (("train", 1), ("val", 2)):
        save(tmp_path / "images" / split / "a.png", photo(value))
        save(tmp_path / "masks" / split / "a.png", label(value))
    assert split_names(str(tmp_path)) == ["train", "val"]
    assert [(load_source(str(tmp_path), split)[0]["mask"] == value).all() for split, value in (("train", 1), ("val", 2))]
    assert len(load_source(str(tmp_path), "val")) == 1
    for wrong in ("validation", "nonsense"):
        with pytest.raises(ValueError, match=rf"no split '{wrong}'; it has \['train', 'val'\]"):
            load_source(str(tmp_path), wrong)


def test_a_folder_without_splits_is_training_data_alone(tmp_path):
    flat_folder(tmp_path)
    assert len(load_source(str(tmp_path), "train")) == 20
    for wrong in ("test", "validation", "nonsense"):
        with pytest.raises(ValueError, match=rf"no split '{wrong}'; it has \['train'\].*--validation_fraction"):
            load_source(str(tmp_path), wrong)


def test_a_flat_folder_is_divided_the_same_way_whatever_the_seed_and_the_limit(tmp_path):
    flat_folder(tmp_path)
    train, held_out = (keys(tmp_path, split, validation_fraction=0.25) for split in ("train", "validation"))
    assert len(train) == 15 and len(held_out) == 5 and not set(train) & set(held_out)
    assert keys(tmp_path, "validation", validation_fraction=0.25, seed=7) == held_out
    assert set(keys(tmp_path, "train", validation_fraction=0.25, seed=3, limit=4)) <= set(train)
    assert len(load_source(str(tmp_path), "train")) == 20


def test_images_that_are_added_change_no_side_but_by_the_count(tmp_path):
    """Membership follows the key: nine tenths of the old division stay as they were."""
    flat_folder(tmp_path)
    before = set(keys(tmp_path, "validation", validation_fraction=0.25))
    flat_folder(tmp_path, 22)
    assert len(before & set(keys(tmp_path, "validation", validation_fraction=0.25))) >= 3


def test_a_division_is_the_same_in_another_place(tmp_path):
    one, other = flat_folder(tmp_path / "a"), flat_folder(tmp_path / "b")
    assert keys(one, "validation", validation_fraction=0.1) == keys(other, "validation", validation_fraction=0.1)
    fingerprints = [
        load_source(str(place), "train", validation_fraction=0.1).description["fingerprint"] for place in (one, other)
    ]
    assert fingerprints[0] == fingerprints[1]
    save(other / "masks" / "03.png", np.arange(6).reshape(2, 3))
    assert load_source(str(other), "train", validation_fraction=0.1).description["fingerprint"] != fingerprints[0]


@pytest.mark.parametrize("fraction, words", [(0.0, "between 0 and 1"), (1.5, "between"), (0.01, "a part without images")])
def test_fractions_that_leave_nothing(tmp_path, fraction, words):
    flat_folder(tmp_path)
    with pytest.raises(ValueError, match=words):
        load_source(str(tmp_path), "train", validation_fraction=fraction)


def test_what_has_a_validation_split_is_not_divided(tmp_path):
    for split in ("train", "val"):
        save(tmp_path / split / "images" / "a.png", photo(1))
        save(tmp_path / split / "masks" / "a.png", label(1))
    with pytest.raises(ValueError, match="--validation_split val"):
        load_source(str(tmp_path), "train", validation_fraction=0.1)
    with pytest.raises(ValueError, match="toyscapes has"):
        load_source("toyscapes", "train", limit=2, validation_fraction=0.1)


def test_parquet_with_one_split_is_divided_by_its_rows(tmp_path):
    rows = [{"image": Image.fromarray(photo(index).astype(np.uint8)), "mask": Image.fromarray(label(index).astype(np.uint8))}
            for index in range(8)]  # fmt: skip
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "data.parquet")
    parts = [load_source(str(tmp_path), split, validation_fraction=0.25) for split in ("train", "validation")]
    values = [sorted(int(part[index]["mask"][0, 0]) for index in range(len(part))) for part in parts]
    assert len(values[1]) == 2 and sorted(values[0] + values[1]) == list(range(8))


# ---- layouts


def two_files(folder, image, mask):
    """One photograph for each of the splits; the label says which."""
    for split, value in (("train", 3), ("val", 5)):
        save(folder / image.format(split=split), photo(value))
        save(folder / mask.format(split=split), label(value))


@pytest.mark.parametrize(
    "image, mask",
    [
        ("images/{split}/a.png", "masks/{split}/a.png"),
        ("images/{split}/sub/a.png", "masks/{split}/sub/a.png"),
        ("img_dir/{split}/a.jpg", "ann_dir/{split}/a.png"),
        ("images/{split}/a.jpg", "annotations/{split}/a.png"),
        ("img/{split}/a.jpg", "gt/{split}/a.png"),
        ("{split}/images/a.jpg", "{split}/labels/a.png"),
        ("{split}/a.png", "{split}annot/a.png"),
        ("{split}/a.png", "{split}_labels/a_L.png"),
        ("{split}/a.jpg", "{split}/a_mask.png"),
    ],
)
def test_layouts_of_two_files(tmp_path, image, mask):
    two_files(tmp_path, image, mask)
    assert split_names(str(tmp_path)) == ["train", "val"]
    for split, value in (("train", 3), ("val", 5)):
        source = load_source(str(tmp_path), split, classes_file=CLASSES)
        assert len(source) == 1 and (source[0]["mask"] == value).all()
        assert np.asarray(source[0]["image"])[0, 0, 0] == value


def test_ade20k_is_known_by_its_file_names_and_reduced(tmp_path):
    for split, number in (("training", "train"), ("validation", "val")):
        save(tmp_path / "images" / split / f"ADE_{number}_00000001.jpg", photo(9))
        save(tmp_path / "annotations" / split / f"ADE_{number}_00000001.png", [[0, 1, 2], [2, 1, 8]])
    source = load_source(str(tmp_path), "validation", classes_file=CLASSES)
    np.testing.assert_array_equal(source[0]["mask"], [[255, 0, 1], [1, 0, 7]])
    assert split_names(str(tmp_path)) == ["training", "validation"]


def test_voc_reads_its_lists_and_knows_its_classes(tmp_path):
    for name, value in (("2007_000001", 3), ("2007_000002", 20), ("2007_000003", 15)):
        save(tmp_path / "JPEGImages" / f"{name}.jpg", photo(value))
    for name, value in (("2007_000001", 3), ("2007_000002", 20)):
        save(tmp_path / "SegmentationClass" / f"{name}.png", label(value))
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000001\n")
    (lists / "val.txt").write_text("2007_000002\n")
    source = load_source(str(tmp_path), "val")
    assert source.class_names == list(VOC_CLASSES) and (source[0]["mask"] == 20).all()
    (lists / "val.txt").write_text("2007_000003\n")
    with pytest.raises(ValueError, match="val.txt.*2007_000003"):
        load_source(str(tmp_path), "val")


@pytest.mark.parametrize("train_ids", [True, False])
def test_cityscapes_takes_train_ids_or_maps_label_ids(tmp_path, train_ids):
    for split, city in (("train", "aachen"), ("val", "ulm")):
        stem = f"{city}_000000_000019"
        save(tmp_path / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", photo(5))
        save(tmp_path / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png", [[7, 0, 26], [33, 11, 3]])
        save(tmp_path / "gtFine" / split / city / f"{stem}_gtFine_color.png", photo(7))
        if train_ids:
            save(tmp_path / "gtFine" / split / city / f"{stem}_gtFine_labelTrainIds.png", [[0, 255, 13], [18, 2, 255]])
    source = load_source(str(tmp_path), "val")
    assert source.class_names[13] == "car" and source[0]["key"] == "ulm/ulm_000000_000019"
    np.testing.assert_array_equal(source[0]["mask"], [[0, 255, 13], [18, 2, 255]])


@pytest.mark.parametrize("columns", [("image", "segmentation_mask"), ("img", "gt"), ("pixel_values", "label")])
@pytest.mark.parametrize("array", [True, False])
def test_parquet_columns_and_arrays(tmp_path, columns, array):
    mask = np.array([[0, 1, 2], [300, 1, 255]], dtype=np.int32)
    feature = datasets.Array2D((2, 3), "int32") if array else datasets.Image()
    value = mask if array else Image.fromarray(mask.astype(np.uint16))
    rows = [{columns[0]: Image.fromarray(photo(1).astype(np.uint8)), columns[1]: value}]
    features = datasets.Features({columns[0]: datasets.Image(), columns[1]: feature})
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "train.parquet")
    np.testing.assert_array_equal(load_source(str(tmp_path), "train")[0]["mask"], mask)


# ---- COCO

CATEGORIES = [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}]


def coco(folder, kind, annotations, name="a.jpg"):
    save(folder / "images" / "val2017" / name, photo(1).repeat(4, 0).repeat(4, 1))
    content = {"images": [{"id": 7, "file_name": name, "height": 8, "width": 12}], "categories": CATEGORIES}
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"{kind}_val2017.json").write_text(json.dumps(content | {"annotations": annotations}))


def test_coco_instances_are_drawn_small_over_large_and_crowds_ignored(tmp_path):
    square = [0, 0, 5, 0, 5, 5, 0, 5]
    small = [2, 2, 3, 2, 3, 3, 2, 3]
    runs = {"size": [8, 12], "counts": [80, 16]}  # the last two columns
    coco(
        tmp_path, "instances",
        [
            {"image_id": 7, "category_id": 3, "area": 1, "segmentation": [small], "iscrowd": 0},
            {"image_id": 7, "category_id": 1, "area": 25, "segmentation": [square], "iscrowd": 0},
            {"image_id": 7, "category_id": 1, "area": 16, "segmentation": runs, "iscrowd": 1},
        ],
    )  # fmt: skip
    source = load_source(str(tmp_path), "val2017")
    expected = np.zeros((8, 12), int)
    expected[:6, :6], expected[2:4, 2:4], expected[:, 10:] = 1, 2, 255
    assert source.class_names == ["background", "person", "car"]
    np.testing.assert_array_equal(source[0]["mask"], expected)


def pack(counts):
    """COCO's letters for run lengths, written from the format's description: the other direction of what is tested."""
    letters = ""
    for index, count in enumerate(counts):
        number = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            bits = number & 31
            number >>= 5
            more = number != (-1 if bits & 16 else 0)
            letters += chr(48 + bits + 32 * more)
    return letters


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_packed_run_lengths(counts):
    assert unpack_counts(pack(counts)) == counts


def test_packed_and_plain_run_lengths_are_read_down_the_columns():
    expected = np.array([[0, 0, 1], [0, 1, 0]], dtype=bool)
    for counts in ([3, 2, 1], pack([3, 2, 1])):
        np.testing.assert_array_equal(decode_runs({"size": [2, 3], "counts": counts}), expected)
    with pytest.raises(ValueError, match="cover 5 pixels"):
        decode_runs({"size": [2, 3], "counts": [3, 2]})


def test_coco_panoptic_colours_become_categories(tmp_path):
    segments = np.zeros((8, 12), int)
    segments[:4], segments[4:, 6:] = 700, 70_001
    pixels = np.stack([segments % 256, segments // 256 % 256, segments // 65_536], -1)
    save(tmp_path / "annotations" / "panoptic_val2017" / "a.png", pixels)
    infos = [{"id": 700, "category_id": 3}, {"id": 70_001, "category_id": 1}]
    coco(tmp_path, "panoptic", [{"image_id": 7, "file_name": "a.png", "segments_info": infos}])
    source = load_source(str(tmp_path), "val2017")
    expected = np.full((8, 12), 255)
    expected[:4], expected[4:, 6:] = 1, 0
    assert source.class_names == ["person", "car"]
    np.testing.assert_array_equal(source[0]["mask"], expected)


def test_coco_without_its_photographs_or_with_other_categories(tmp_path):
    coco(tmp_path, "instances", [])
    (tmp_path / "images" / "val2017" / "a.jpg").unlink()
    with pytest.raises(ValueError, match="1 are not in"):
        load_source(str(tmp_path), "val2017")
    other = json.loads((tmp_path / "annotations" / "instances_val2017.json").read_text()) | {"categories": CATEGORIES[:1]}
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="other categories"):
        load_source(str(tmp_path), "val2017")


# ---- what is not understood


def test_a_layout_that_is_not_understood_is_answered_with_those_that_are(tmp_path):
    save(tmp_path / "somewhere" / "a.jpg", photo(1))
    with pytest.raises(ValueError, match="no way that is understood") as error:
        load_source(str(tmp_path), "train")
    assert all(name in str(error.value) for name in MASK_LAYOUTS)


def test_a_folder_that_does_not_exist():
    with pytest.raises(ValueError, match="no folder /nowhere/at/all"):
        load_source("/nowhere/at/all", "train")


def test_images_beside_splits_and_names_that_differ_by_the_suffix_alone(tmp_path):
    two_files(tmp_path, "images/{split}/a.png", "masks/{split}/a.png")
    save(tmp_path / "images" / "loose.png", photo(1))
    with pytest.raises(ValueError, match="loose.png"):
        load_source(str(tmp_path), "train")
    (tmp_path / "images" / "loose.png").unlink()
    save(tmp_path / "images" / "train" / "a.jpg", photo(1))
    with pytest.raises(ValueError, match="same name but for the suffix"):
        load_source(str(tmp_path), "train")
