"""The training scripts read an export of Toyscapes by the path they read a Hub data set by, and see the same."""

import numpy as np
import pytest

from hf_clipseg.toyscapes import CLASS_NAMES, ToyscapesDataset, export_imagefolder, export_parquet
from training.data.sources import load_captions, load_source

SIZE, COUNT = (24, 32), 4


@pytest.fixture(params=[export_parquet, export_imagefolder])
def folder(request, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    request.param(tmp_path / "toys", [ToyscapesDataset(split, SIZE, COUNT) for split in ("train", "test")])
    return str(tmp_path / "toys")


def test_masks(folder):
    drawn, read = load_source("toyscapes", "test", limit=COUNT, size=SIZE), load_source(folder, "test")
    assert list(read.class_names) == list(CLASS_NAMES) and len(read) == COUNT
    by_content = {np.asarray(sample["image"]).tobytes(): sample["mask"] for sample in (read[i] for i in range(COUNT))}
    for index in range(COUNT):
        sample = drawn[index]
        np.testing.assert_array_equal(by_content[np.asarray(sample["image"]).tobytes()], sample["mask"])


def test_captions(folder):
    drawn = load_captions("toyscapes", "train", limit=COUNT, size=SIZE, omission_rate=0.5, closeup_rate=0.0)
    read = load_captions(folder, "train")
    assert sorted(read[i]["captions"] for i in range(COUNT)) == sorted(drawn[i]["captions"] for i in range(COUNT))
