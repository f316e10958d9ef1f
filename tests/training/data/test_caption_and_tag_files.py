"""Captions and tags in folders, in every form that is understood."""

import json

import numpy as np
import pytest
from PIL import Image

from training.data.caption_files import CAPTION_LAYOUTS
from training.data.sources import load_captions
from training.data.tagged_images import load_tagged_images

CAPTIONS = {"a.png": ["a sea, with a boat", "water"], "b.png": ["sand"]}


def images(folder, *names):
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 3, 3), index, np.uint8)).save(path)


def captions_of(folder, split="train", **options):
    source = load_captions(str(folder), split, **options)
    return {source[index]["key"]: source[index]["captions"] for index in range(len(source))}


COCO = {
    "images": [{"id": 1, "file_name": "a.png"}, {"id": 5, "file_name": "b.png"}],
    "annotations": [
        {"image_id": 1, "caption": "a sea, with a boat"}, {"image_id": 5, "caption": "sand"},
        {"image_id": 1, "caption": "water"},
    ],
}  # fmt: skip

JSON_LINES = '{"image": "a.png", "captions": ["a sea, with a boat", "water"]}\n\n{"image": "b.png", "caption": "sand"}\n'


@pytest.mark.parametrize("place", ["", "images/"])
@pytest.mark.parametrize(
    "name, content",
    [
        ("captions.csv", 'image,caption\na.png,"a sea, with a boat"\na.png,water\nb.png,sand\n'),
        ("captions.csv", 'file_name,text\na.png,"a sea, with a boat"\nb.png,sand\na.png,water\n'),
        ("captions.tsv", "image\tcaption\na.png\ta sea, with a boat\na.png\twater\nb.png\tsand\n"),
        ("captions.jsonl", JSON_LINES),
        ("captions.json", json.dumps(COCO)),
        ("captions_train.json", json.dumps(COCO)),
        ("annotations/captions_train.json", json.dumps(COCO)),
    ],
)  # fmt: skip
def test_caption_files(tmp_path, place, name, content):
    images(tmp_path, f"{place}a.png", f"{place}b.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    assert captions_of(tmp_path) == CAPTIONS
    with pytest.raises(ValueError, match=r"no split 'val'; it has \['train'\]"):
        load_captions(str(tmp_path), "val")


def test_one_caption_file_for_images_in_split_folders(tmp_path):
    images(tmp_path / "images", "train/a.png", "val/b.png")
    (tmp_path / "captions.csv").write_text("image,caption\na.png,sea\nb.png,sand\n")
    assert (captions_of(tmp_path), captions_of(tmp_path, "val")) == ({"a.png": ["sea"]}, {"b.png": ["sand"]})
    (tmp_path / "captions.csv").write_text("image,caption\na.png,sea\nc.png,sand\n")
    with pytest.raises(ValueError, match=r"1 are in none of \['train', 'val'\].*c.png"):
        load_captions(str(tmp_path), "train")


def test_captions_are_divided_by_image_and_limited_by_seed(tmp_path):
    names = [f"{index}.png" for index in range(10)]
    images(tmp_path, *names)
    (tmp_path / "captions.csv").write_text("image,caption\n" + "".join(f"{name},one\n{name},two\n" for name in names))
    parts = [captions_of(tmp_path, split, validation_fraction=0.3) for split in ("train", "validation")]
    assert len(parts[1]) == 3 and sorted({**parts[0], **parts[1]}) == names and len(parts[0]) == 7
    drawn = [sorted(captions_of(tmp_path, limit=4, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 4


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("captions.csv", "image,caption\na.png,sea\nz.png,sand\n", ["1 are not in", "z.png"]),
        ("captions.csv", "image,caption\na.png\n", ["row 1", "missing"]),
        ("captions.jsonl", '{"image": "a.png"}\n', ["row 1", "missing"]),
        ("captions.jsonl", "nothing\n", ["line 1 is no JSON"]),
        ("captions.json", "[]", ["not in COCO's format"]),
    ],
)  # fmt: skip
def test_caption_files_that_cannot_be_right(tmp_path, name, content, words):
    images(tmp_path, "a.png")
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as error:
        load_captions(str(tmp_path), "train")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_folder_without_captions_is_answered_with_what_is_understood(tmp_path):
    images(tmp_path, "a.png")
    with pytest.raises(ValueError) as error:
        load_captions(str(tmp_path), "train")
    assert all(name in str(error.value) for name in CAPTION_LAYOUTS)


# ---- tags


def tags_of(folder, split="train", **options):
    source = load_tagged_images(str(folder), split, **options)
    names = [names[0] for names in source.class_names]
    found = {}
    for index, key in enumerate(source.keys):
        found[key] = [name for name, tagged in zip(names, source.labels[index].tolist(), strict=True) if tagged]
    return names, found


@pytest.mark.parametrize(
    "name, content",
    [
        ("tags.csv", "file,labels\na.png,sea;boat\nb.png,sand\n"),
        ("labels.csv", "image,tags\na.png,sea|boat\nb.png,sand\n"),
        ("tags.csv", 'filename,label\na.png,"sea, boat"\nb.png,sand\n'),
        ("labels.csv", "filename, sea, boat, sand\na.png, 1, 1, 0\nb.png, 0, 0, 1\n"),
    ],
)  # fmt: skip
def test_tables_of_tags(tmp_path, name, content):
    images(tmp_path, "a.png", "b.png")
    (tmp_path / name).write_text(content)
    assert tags_of(tmp_path) == (["boat", "sand", "sea"], {"a.png": ["boat", "sea"], "b.png": ["sand"]})


def test_a_column_of_splits(tmp_path):
    images(tmp_path, "a.png", "b.png")
    (tmp_path / "tags.csv").write_text("file,labels,split\na.png,sea,train\nb.png,sand,val\n")
    assert tags_of(tmp_path, "val") == (["sand", "sea"], {"b.png": ["sand"]})
    with pytest.raises(ValueError, match=r"no split 'test'; it has \['train', 'val'\]"):
        load_tagged_images(str(tmp_path), "test")


def test_a_folder_per_class(tmp_path):
    images(tmp_path, "boat/1.png", "boat/2.png", "sea/1.png")
    assert tags_of(tmp_path) == (["boat", "sea"], {"boat/1": ["boat"], "boat/2": ["boat"], "sea/1": ["sea"]})


def test_a_folder_per_class_and_split(tmp_path):
    images(tmp_path, "train/boat/1.png", "train/sea/2.png", "val/sea/3.png")
    assert tags_of(tmp_path, "val") == (["boat", "sea"], {"sea/3": ["sea"]})


def test_tags_are_divided_and_a_list_without_its_folder_is_refused(tmp_path):
    names = [f"{index}.png" for index in range(10)]
    images(tmp_path, *names)
    table = tmp_path / "elsewhere.csv"
    table.write_text("file,labels\n" + "".join(f"{name},sea\n" for name in names))
    parts = [tags_of(tmp_path, split, labels_csv=str(table), validation_fraction=0.2)[1] for split in ("train", "validation")]
    assert sorted({**parts[0], **parts[1]}) == names and len(parts[1]) == 2
    with pytest.raises(ValueError, match="no folder"):
        load_tagged_images("someone/data", labels_csv=str(table))
