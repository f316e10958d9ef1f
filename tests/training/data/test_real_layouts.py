"""Published photographs, laid out as their data sets are, read through the layouts."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data.rows import split_names
from training.data.sources import load_captions, load_source

REAL_DATA = os.environ.get("HF_CLIPSEG_REAL_DATA")
pytestmark = pytest.mark.skipif(not REAL_DATA, reason="needs photographs: HF_CLIPSEG_REAL_DATA names no folder")
ROOT = Path(REAL_DATA or ".")


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def pixels(path):
    return np.asarray(Image.open(path)).astype(np.int64)


def test_voc_with_its_lists(tmp_path):
    for path in (ROOT / "voc_labelme3").rglob("*.*"):
        if path.parent.name in ("JPEGImages", "SegmentationClass"):
            copy(path, tmp_path / path.parent.name / path.name)
    stems = sorted(path.stem for path in (tmp_path / "SegmentationClass").iterdir())
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(stems[:2]))
    (lists / "val.txt").write_text(stems[2])
    source = load_source(str(tmp_path), "val")
    np.testing.assert_array_equal(source[0]["mask"], pixels(tmp_path / "SegmentationClass" / f"{stems[2]}.png"))
    assert source.class_names[15] == "person" and len(load_source(str(tmp_path), "train")) == 2
    as_published = load_source(str(ROOT / "voc_labelme3"), "train")
    assert len(as_published) == 3 and len(as_published.class_names) == 21
    for index in range(3):
        _ = as_published[index]


def test_voc_masks_stored_as_colours(tmp_path):
    for image in (ROOT / "voc_labelme3" / "JPEGImages").iterdir():
        copy(image, tmp_path / "images" / image.name)
        mask = Image.open(ROOT / "voc_labelme3" / "SegmentationClass" / f"{image.stem}.png")
        (tmp_path / "masks").mkdir(exist_ok=True)
        mask.convert("RGB").save(tmp_path / "masks" / f"{image.stem}.png")
    source = load_source(str(tmp_path), "train")
    for index in range(3):
        sample = source[index]
        stored = pixels(ROOT / "voc_labelme3" / "SegmentationClass" / f"{sample['key']}.png")
        np.testing.assert_array_equal(sample["mask"], stored)


def test_ade20k_as_its_archive_has_it(tmp_path):
    folder = ROOT / "ade20k_sample3"
    for image in folder.glob("images/*.jpg"):
        split = "training" if "train" in image.name else "validation"
        copy(image, tmp_path / "images" / split / image.name)
        copy(folder / "annotations" / f"{image.stem}.png", tmp_path / "annotations" / split / f"{image.stem}.png")
    for split in split_names(str(tmp_path)):
        source = load_source(str(tmp_path), split)
        assert len(source.class_names) == 150 and source.class_names[:2] == ["wall", "building"]
        for index in range(len(source)):
            sample = source[index]
            stored = pixels(tmp_path / "annotations" / split / f"{sample['key']}.png")
            np.testing.assert_array_equal(sample["mask"], np.where(stored == 0, 255, stored - 1))


def test_coco_instances_are_drawn_as_the_published_masks_were(tmp_path):
    folder = ROOT / "coco_mini"
    shutil.copytree(folder / "images" / "val2017", tmp_path / "val2017")
    copy(folder / "annotations" / "instances_val2017.json", tmp_path / "annotations" / "instances_val2017.json")
    source = load_source(str(tmp_path), "val2017")
    assert len(source) == 79 and source.class_names[:3] == ["background", "person", "bicycle"]
    same = total = 0
    for index in range(len(source)):
        sample = source[index]
        expected = pixels(folder / "masks" / "val2017" / f"{sample['key']}.png")
        same, total = same + (sample["mask"] == expected).sum(), total + expected.size
    assert same / total > 0.97  # the rest are borders, and objects that overlap in the other order


def test_coco_panoptic_gives_the_categories(tmp_path):
    folder = ROOT / "coco_panoptic100"
    categories = json.loads((folder / "panoptic_categories.json").read_text())
    files = sorted((folder / "masks_catid").rglob("*.png"))[:12]
    images, annotations = [], []
    for number, path in enumerate(files):
        photo = next((folder / "images").rglob(f"{path.stem}.*"))
        copy(photo, tmp_path / "train2017" / photo.name)
        ids = pixels(path)
        segments = np.where(ids > 0, ids * 1000 + 7, 0)  # one segment per category, numbered beyond a byte
        picture = np.stack([segments % 256, segments // 256 % 256, segments // 65_536], -1).astype(np.uint8)
        (tmp_path / "annotations" / "panoptic_train2017").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "annotations" / "panoptic_train2017" / path.name)
        infos = [{"id": int(value) * 1000 + 7, "category_id": int(value)} for value in np.unique(ids) if value]
        images.append({"id": number, "file_name": photo.name, "height": ids.shape[0], "width": ids.shape[1]})
        annotations.append({"image_id": number, "file_name": path.name, "segments_info": infos})
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "annotations" / "panoptic_train2017.json").write_text(json.dumps(content))
    source = load_source(str(tmp_path), "train2017")
    order = sorted(category["id"] for category in categories)
    names = {category["id"]: category["name"] for category in categories}
    assert source.class_names == [names[category] for category in order]
    table = np.full(256, 255)
    table[order] = range(len(order))
    for index, path in enumerate(files):
        np.testing.assert_array_equal(source[index]["mask"], table[pixels(path)])


def test_flickr_and_coco_captions():
    assert len(load_captions(str(ROOT / "flickr8k_600"), "train")) == 600
    source = load_captions(str(ROOT / "coco_mini"), "val2017")
    assert len(source) == 79 and len(source[0]["captions"]) >= 5


def test_msrc_flat_is_divided_once(tmp_path):
    shutil.copytree(ROOT / "msrc_v2", tmp_path / "msrc")
    parts = {split: load_source(str(tmp_path / "msrc"), split, validation_fraction=0.25) for split in ("train", "validation")}
    keys = {split: {part.stored(index)[0] for index in range(len(part))} for split, part in parts.items()}
    assert len(keys["train"]) == 222 and len(keys["validation"]) == 74 and not keys["train"] & keys["validation"]
    assert parts["train"].class_names[:2] == ["building", "grass"]
