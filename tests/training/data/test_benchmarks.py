"""Original folders of the benchmarks, laid out from real photographs, against the labels that they were made from."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from training.data.benchmarks import BENCHMARKS, coco_object_id_map, coco_stuff_id_map, open_benchmark, vocabulary

SIZES = {
    "voc21": 21, "voc20": 20, "context60": 60, "context59": 59, "coco-object": 81, "coco-stuff": 171, "ade20k": 150,
    "cityscapes": 19,
}  # fmt: skip


def picture(path, value, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = "RGB" if path.suffix == ".jpg" or "leftImg8bit" in path.name else "L"
    Image.new(mode, size, value if mode == "L" else (value,) * 3).save(path)


def test_class_lists_have_the_sizes_of_the_field():
    assert {name: len(benchmark.class_names) for name, benchmark in BENCHMARKS.items()} == SIZES
    assert BENCHMARKS["coco-stuff"].class_names[:3] == ("person", "bicycle", "car")
    assert BENCHMARKS["coco-stuff"].class_names[80] == "banner" and BENCHMARKS["coco-stuff"].class_names[170] == "wood"
    assert BENCHMARKS["context60"].class_names[:3] == ("background", "aeroplane", "bag")
    assert vocabulary("voc21")[0][:2] == ["sky", "wall"] and vocabulary("voc21")[4] == ["ship"]


def test_coco_ids():
    """COCO's category ids less one: 12 (street sign) and others are unused, 13 (stop sign) is the 12th thing."""
    assert len(coco_stuff_id_map()) == 171 and sorted(coco_stuff_id_map().values()) == list(range(171))
    assert coco_stuff_id_map()[12] == 11 and 11 not in coco_stuff_id_map() and coco_stuff_id_map()[91] == 80
    objects = coco_object_id_map()
    assert objects[0] == 1 and objects[89] == 80 and objects[91] == objects[181] == objects[255] == 0


def test_voc_with_and_without_background(real_data, tmp_path):
    root = tmp_path / "VOCdevkit/VOC2012"
    for folder in ("JPEGImages", "SegmentationClass"):
        shutil.copytree(real_data / "voc_labelme3" / folder, root / folder)
    keys = ["2011_000025", "2011_000003"]
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(keys) + "\n")
    for path in (root, root.parent, tmp_path):
        whole, things = open_benchmark("voc21", path), open_benchmark("voc20", path)
        assert [whole[index]["key"] for index in range(len(whole))] == keys
    for index, key in enumerate(keys):
        stored = np.asarray(Image.open(root / f"SegmentationClass/{key}.png")).astype(int)
        np.testing.assert_array_equal(whole[index]["mask"], stored)
        shifted = np.where((stored == 0) | (stored == 255), 255, stored - 1)
        np.testing.assert_array_equal(things[index]["mask"], shifted)
    assert things.class_names[14] == "person" and len(open_benchmark("voc21", root, limit=1)) == 1
    with pytest.raises(ValueError, match="not laid out as context59 is: expected ImageSets/SegmentationContext/val.txt"):
        open_benchmark("context59", root)
    (root / "JPEGImages/2011_000003.jpg").unlink()
    with pytest.raises(ValueError, match="1 files are missing, .*2011_000003.jpg"):
        open_benchmark("voc21", root)


def test_ade20k(real_data, tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    shutil.copytree(real_data / "ade20k_sample3/images", root / "images/validation")
    shutil.copytree(real_data / "ade20k_sample3/annotations", root / "annotations/validation")
    source = open_benchmark("ade20k", tmp_path)
    assert len(source) == 3
    for index in range(3):
        stored = np.asarray(Image.open(root / f"annotations/validation/{source[index]['key']}.png")).astype(int)
        np.testing.assert_array_equal(source[index]["mask"], np.where(stored == 0, 255, stored - 1))


def test_coco_object_from_both_kinds_of_masks(real_data, tmp_path):
    """The converted masks of `coco_mini`, and original ids made from the category ids of `coco_panoptic100`."""
    mini = sorted((real_data / "coco_mini/masks/val2017").glob("*.png"))[:4]
    for mask in mini:
        (tmp_path / "converted/annotations/val2017").mkdir(parents=True, exist_ok=True)
        (tmp_path / "converted/images/val2017").mkdir(parents=True, exist_ok=True)
        shutil.copy(mask, tmp_path / f"converted/annotations/val2017/{mask.stem}_instanceTrainIds.png")
        (image,) = (real_data / "coco_mini/images/val2017").glob(f"{mask.stem}.*")
        shutil.copy(image, tmp_path / f"converted/images/val2017/{mask.stem}.jpg")
    source = open_benchmark("coco-object", tmp_path / "converted")
    for index, mask in enumerate(mini):
        np.testing.assert_array_equal(source[index]["mask"], np.asarray(Image.open(mask)))

    categories = json.loads((real_data / "coco_panoptic100/panoptic_categories.json").read_text())
    names = {category["id"]: category["name"] for category in categories if category["id"] <= 90}
    panoptic = sorted((real_data / "coco_panoptic100/masks_catid").rglob("*.png"))[:6]
    for mask in panoptic:
        ids = np.asarray(Image.open(mask)).astype(int)
        raw = np.where(
            ids == 0, 255, np.where(ids <= 90, ids - 1, 181)
        )  # stuff has other ids there: one of them stands for all
        (tmp_path / "raw/annotations/val2017").mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw/images/val2017").mkdir(parents=True, exist_ok=True)
        Image.fromarray(raw.astype(np.uint8)).save(tmp_path / f"raw/annotations/val2017/{mask.stem}.png")
        Image.new("RGB", ids.shape[::-1]).save(tmp_path / f"raw/images/val2017/{mask.stem}.jpg")
    source = open_benchmark("coco-object", tmp_path / "raw")
    seen = set()
    for index, mask in enumerate(panoptic):
        ids, own = np.asarray(Image.open(mask)).astype(int), source[index]["mask"]
        for category in np.unique(ids):
            label = np.unique(own[ids == category])
            assert len(label) == 1 and source.class_names[label[0]] == names.get(category, "background")
            seen.add(category)
    assert len(seen) > 10
    stuff = open_benchmark("coco-stuff", tmp_path / "raw")[0]["mask"]
    things = open_benchmark("coco-object", tmp_path / "raw")[0]["mask"]
    assert (stuff[things > 0] == things[things > 0] - 1).all() and set(stuff[things == 0].tolist()) <= {170, 255}


def test_context_and_cityscapes(tmp_path):
    context = tmp_path / "VOC2010"
    for value, key in enumerate(("a", "b"), start=1):
        picture(context / f"JPEGImages/{key}.jpg", 9)
        picture(context / f"SegmentationClassContext/{key}.png", 59 * (value - 1))
    (context / "ImageSets/SegmentationContext").mkdir(parents=True)
    (context / "ImageSets/SegmentationContext/val.txt").write_text("a\nb\n")
    assert [int(open_benchmark("context60", tmp_path)[index]["mask"][0, 0]) for index in range(2)] == [0, 59]
    assert [int(open_benchmark("context59", tmp_path)[index]["mask"][0, 0]) for index in range(2)] == [255, 58]

    for city, value in (("bonn", 7), ("ulm", 33), ("ulm2", 4)):
        picture(tmp_path / f"leftImg8bit/val/{city}/{city}_0_leftImg8bit.png", 9)
        picture(tmp_path / f"gtFine/val/{city}/{city}_0_gtFine_labelIds.png", value)
    assert [int(open_benchmark("cityscapes", tmp_path)[index]["mask"][0, 0]) for index in range(3)] == [0, 18, 255]
    for city, value in (("bonn", 3), ("ulm", 4), ("ulm2", 255)):
        picture(tmp_path / f"gtFine/val/{city}/{city}_0_gtFine_labelTrainIds.png", value)
    assert [int(open_benchmark("cityscapes", tmp_path)[index]["mask"][0, 0]) for index in range(3)] == [3, 4, 255]


def test_what_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match="'pets' is no benchmark .* voc21, voc20"):
        open_benchmark("pets", tmp_path)
    with pytest.raises(ValueError, match="splits train, validation, not 'test'"):
        open_benchmark("voc21", tmp_path, "test")
