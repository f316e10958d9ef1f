"""Folders that cannot be trained on: each is answered with one sentence that says what to do, by the check and by a run."""

import csv
import re

import numpy as np
import pytest
from PIL import Image

from training import check_dataset, train_cocu, train_mta_clip, train_vpl


def picture(path, labels=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 3 if labels else 256, (24, 24) if labels else (24, 24, 3), dtype=np.uint8)).save(path)


def photographs(folder, splits=("",), count=12, names="sky\nsea\nsand\n"):
    for split in splits:
        for index in range(count):
            picture(folder / "images" / split / f"{index:02d}.png")
            picture(folder / "masks" / split / f"{index:02d}.png", labels=True)
    (folder / "classes.txt").write_text(names)
    return folder


def empty(folder):
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)


def split_without_images(folder):
    photographs(folder, ("train",))
    for part in ("images", "masks"):
        (folder / part / "val").mkdir()


def too_few_names(folder):
    photographs(folder, names="sky\nsea\n")


def broken_in_the_middle(folder):
    photographs(folder)
    (folder / "images" / "06.png").write_bytes(b"\x89PNG and no more")


def ends_with(command, folder, output, *more):
    with pytest.raises(SystemExit) as end:
        command.main(["--dataset_name", str(folder), "--output_dir", str(output), *more])
    message = str(end.value)
    assert message.startswith("error: ") and "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("make", "more", "words"),
    [
        (empty, [], "is empty: there is no file in it"),
        (split_without_images, ["--validation_split", "val"], "there are no images in .*images/val: put them there"),
        (too_few_names, [], r"mask '00' holds the labels \[2\], but there are 2 classes .*name all classes"),
        (broken_in_the_middle, [], "image '06': .*06.png is no image that can be read: it is empty, damaged"),
    ],
)
def test_a_run_on_masks(tmp_path, make, more, words):
    make(tmp_path / "data")
    small = ["--crop_size", "32", "32", "--short_side", "32", "--hidden_dim", "64", "--max_train_steps", "9"]
    message = ends_with(train_mta_clip, tmp_path / "data", tmp_path / "run", *small, *more)
    assert "\n" not in message and re.search(words, message), message


def test_what_is_understood_stays_a_list(tmp_path):
    picture(tmp_path / "data" / "photo.png")
    lines = ends_with(train_mta_clip, tmp_path / "data", tmp_path / "run").splitlines()
    assert lines[0].endswith("is laid out in no way that is understood. These are:")
    assert len(lines) > 5 and all(line.startswith("  - ") for line in lines[1:])


def test_folders_of_masks_are_no_classes(tmp_path):
    """Without tags VPL would learn the classes 'images' and 'masks'."""
    photographs(tmp_path / "data")
    assert "tags.csv" in ends_with(train_vpl, tmp_path / "data", tmp_path / "run")


@pytest.mark.parametrize(("command", "table"), [(train_vpl, "tags.csv"), (train_cocu, "captions.csv")])
def test_a_broken_picture_among_tags_or_captions(tmp_path, command, table):
    broken_in_the_middle(tmp_path / "data")
    with (tmp_path / "data" / table).open("w", newline="") as file:
        column = ("file", "labels") if command is train_vpl else ("image", "caption")
        rows = [[f"images/{index:02d}.png", "sky;sea;sand"] for index in range(12)]
        csv.writer(file).writerows([column, *rows])
    more = ["--sampling", "none"] if command is train_cocu else ["--image_size", "32", "--max_iterations", "1"]
    assert "06.png is no image that can be read" in ends_with(command, tmp_path / "data", tmp_path / "run", *more)


def test_the_check_of_a_class_list_that_is_too_short(tmp_path, capsys):
    too_few_names(tmp_path)
    with pytest.raises(SystemExit):
        check_dataset.main([str(tmp_path), "--picture", str(tmp_path / "sheet.png")])
    assert "2 classes are named); name them in classes.txt or --classes, or --ignore_label 2" in capsys.readouterr().out
