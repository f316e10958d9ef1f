"""Slips of the hand: the answer names what was probably meant."""

import numpy as np
import pytest
from PIL import Image

from training import check_dataset
from training.check_dataset import gaps_closed
from training.settings.arguments import CommandParser, DataArguments
from training.settings.model_paths import check_models


def test_an_option_that_does_not_exist(capsys):
    with pytest.raises(SystemExit):
        CommandParser((DataArguments,), "about").parse_args(["--datset_name", "voc"])
    assert "--datset_name voc; did you mean --dataset_name?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nowhere/at/all", "data"])
def test_a_model_that_is_none(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    parser = CommandParser((DataArguments,), "about")
    parser.add_argument("--vision_backbone")
    with pytest.raises(ValueError, match=f"--vision_backbone is {name}: there is no such folder"):
        check_models(parser.parse_args(["--vision_backbone", name]))


def test_a_misspelt_folder(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(SystemExit, match=r"There is no folder .*phtos \(did you mean .*photos\?\)"):
        check_dataset.main([str(tmp_path / "phtos")])


def test_the_columns_of_a_tag_file_are_told_apart_from_an_unknown_layout(tmp_path):
    (tmp_path / "tags.csv").write_text("picture,words\na.jpg,sky\n")
    with pytest.raises(SystemExit, match="needs the columns 'file' and 'labels'"):
        check_dataset.main([str(tmp_path)])


def test_folders_with_capitals_in_ade20ks_layout(tmp_path, monkeypatch, capsys):
    """Read as images and masks, and labels 0 to 2 of two classes count from 1."""
    monkeypatch.chdir(tmp_path)
    for part in ("Images", "Annotations"):
        (tmp_path / part / "training").mkdir(parents=True)
    Image.new("RGB", (6, 6)).save(tmp_path / "Images" / "training" / "a.png")
    Image.fromarray(np.arange(36, dtype=np.uint8).reshape(6, 6) % 3).save(tmp_path / "Annotations" / "training" / "a.png")
    (tmp_path / "classes.txt").write_text("sky\nsea\n")
    with pytest.raises(SystemExit):
        check_dataset.main([str(tmp_path)])
    assert "--split training --validation_fraction 0.1 --reduce_labels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stored", "classes", "pairs"),
    [
        ([1, 7, 30], 3, "1:0,7:1,30:2"),
        ([0, 1, 7, 30], 3, "0:255,1:0,7:1,30:2"),
        ([0, 100, 200, 65535], 3, "65535:255,0:0,100:1,200:2"),
        ([1, 2, 3], 3, None),
        ([0, 1, 2, 3], 3, None),
        ([0, 9], 3, None),
    ],
)
def test_labels_with_gaps(stored, classes, pairs):
    assert gaps_closed(stored, classes) == pairs
