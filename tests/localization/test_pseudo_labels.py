"""From maps to pseudo masks, in memory and on disk: background, confidence, sources of tags, and a kill in the middle."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_clipseg import SegmentationProcessor, VplForSemanticSegmentation
from hf_clipseg.localization.localization import Localization
from hf_clipseg.localization.pseudo_labels import pseudo_labels, refined_localization
from training.data.pseudo_masks import confidence_path, mask_path, write_pseudo_labels
from training.data.tagged_images import TaggedImages, load_tagged_images

from ..tiny import save_tiny_clip

CLASSES = ["sky", "boat", "grass"]
ROOT = Path(__file__).parents[2]


def localization(maps: list, class_ids: list, used: list) -> Localization:
    maps = torch.tensor(maps)
    return Localization(maps, torch.tensor(class_ids), torch.tensor(used), torch.zeros(len(maps), *maps.shape[2:], 4))


def test_the_highest_map_wins_and_its_share_is_the_confidence():
    found = localization([[[[0.9, 0.1]], [[0.3, 0.6]]]], [[2, 5]], [[True, True]])
    labels, confidence = pseudo_labels(found, torch.zeros(1, 3, 1, 2), has_background=False, refinement="none")
    assert labels.tolist() == [[[2, 5]]]
    torch.testing.assert_close(confidence, torch.tensor([[[0.75, 6 / 7]]]), rtol=1e-4, atol=1e-4)


def test_background_takes_what_no_class_claims_and_moves_the_numbers():
    found = localization([[[[0.9, 0.1]], [[0.3, 0.2]]]], [[2, 5]], [[True, True]])
    labels, confidence = pseudo_labels(found, torch.zeros(1, 3, 1, 2), has_background=True, refinement="none")
    assert labels.tolist() == [[[3, 0]]]
    torch.testing.assert_close(confidence, torch.tensor([[[0.9 / 1.3, 0.8 / 1.1]]]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("refinement", ["none", "pamr", "crf"])
def test_unused_slots_never_win(refinement):
    maps = torch.zeros(2, 3, 4, 4).tolist()
    found = localization(maps, [[1, 2, 0], [4, 0, 0]], [[True, True, False], [True, False, False]])
    labels, confidence = pseudo_labels(found, 255 * torch.rand(2, 3, 16, 20), False, refinement)
    assert labels.shape == (2, 16, 20) and set(labels[0].unique().tolist()) <= {1, 2}
    assert (labels[1] == 4).all() and torch.allclose(confidence[1], torch.ones(16, 20))


@pytest.mark.parametrize("has_background", [False, True])
def test_refined_maps_are_the_share_of_the_mask(has_background):
    maps = torch.tensor([[[[0.9, 0.1], [0.9, 0.9]], [[0.0, 0.8], [0.0, 0.0]]]])
    found = Localization(maps, torch.tensor([[2, 5]]), torch.tensor([[True, True]]), torch.zeros(1, 2, 2, 4))
    images = torch.zeros(1, 3, 8, 8)
    labels, _ = pseudo_labels(found, images, has_background, "none")
    refined = refined_localization(found, images, has_background, "none")
    for slot, value in enumerate((2 + has_background, 5 + has_background)):
        expected = (labels[0] == value).float().view(2, 4, 2, 4).mean((1, 3))
        torch.testing.assert_close(refined.maps[0, slot], expected)
    assert refined.maps[0, 1, 0, 1] > 0.5 > refined.maps[0, 1, 1, 0]


def test_unknown_refinement_is_named():
    found = localization([[[[0.9]]]], [[0]], [[True]])
    with pytest.raises(ValueError, match="'blur'"):
        pseudo_labels(found, torch.zeros(1, 3, 2, 2), False, "blur")


def write_folder(folder: Path, count: int = 60) -> Path:
    """Noise images of two sizes, and their tags as CSV, one of them in a sub-folder."""
    generator = np.random.default_rng(0)
    (folder / "more").mkdir(parents=True)
    rows = []
    for index in range(count):
        name = f"more/{index}.png" if index == 3 else f"{index}.png"
        size = (24, 32) if index % 3 else (32, 24)
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
        rows.append([name, ";".join(CLASSES[: 1 + index % 3])])
    with (folder / "tags.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["file", "labels"], *rows])
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    clip = save_tiny_clip(tmp_path_factory.mktemp("clip"))
    folder = tmp_path_factory.mktemp("vpl")
    processor = SegmentationProcessor.from_clip(clip, size={"shortest_edge": 24, "longest_edge": 96})
    model = VplForSemanticSegmentation.from_clip(clip, decoder_dim=16, decoder_heads=2)
    model.set_classes(CLASSES, processor)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def localizer(checkpoint):
    return VplForSemanticSegmentation.from_pretrained(checkpoint), SegmentationProcessor.from_pretrained(checkpoint)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def unbroken(localizer, photos, tmp_path_factory):
    source = load_tagged_images(str(photos), labels_csv=str(photos / "tags.csv"), class_names=CLASSES)
    return write_pseudo_labels(*localizer, source, tmp_path_factory.mktemp("unbroken"), batch_size=2)


def test_every_image_gets_a_mask_of_its_size_and_its_classes(unbroken, photos):
    source = load_tagged_images(str(photos), labels_csv=str(photos / "tags.csv"), class_names=CLASSES)
    for index, key in enumerate(source.keys):
        labels, confidence = (np.array(Image.open(path(unbroken, key))) for path in (mask_path, confidence_path))
        assert labels.dtype == confidence.dtype == np.uint8
        assert labels.shape == confidence.shape == source[index]["image"].size[::-1]
        assert set(np.unique(labels)) <= set(source.labels[index].nonzero()[:, 0].tolist())
    assert len(contents(unbroken)) == 2 * len(source) + 1


def test_killed_and_started_again_it_writes_the_same_files(checkpoint, localizer, photos, unbroken, tmp_path):
    command = [sys.executable, "-m", "training.make_pseudo_labels", str(checkpoint), "--output_dir", str(tmp_path)]
    command += ["--dataset_name", str(photos), "--labels_csv", str(photos / "tags.csv"), "--batch_size", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and len(list(tmp_path.glob("*.confidence.png"))) < 10:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    errors = process.communicate()[1].decode()
    written = len(list(tmp_path.glob("*.confidence.png")))
    assert process.returncode == -signal.SIGKILL and 10 <= written < 60, errors[-2000:]

    (tmp_path / ".half.png.partial").write_bytes(b"left over")
    source = load_tagged_images(str(photos), labels_csv=str(photos / "tags.csv"), class_names=CLASSES)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("[!.]*.png")}
    write_pseudo_labels(*localizer, source, tmp_path, batch_size=2)
    finished = {name: data for name, data in contents(tmp_path).items() if not name.endswith(".partial")}
    assert finished == contents(unbroken)
    complete = [name for name in before if "confidence" not in name]
    assert all((tmp_path / name).stat().st_mtime_ns == before[name] for name in complete)


def test_processes_share_the_images(localizer, photos, unbroken, tmp_path):
    class Process:
        num_processes = 2

        def __init__(self, index):
            self.process_index, self.is_main_process = index, index == 0

        def wait_for_everyone(self):
            pass

    source = load_tagged_images(str(photos), labels_csv=str(photos / "tags.csv"), class_names=CLASSES)
    write_pseudo_labels(*localizer, source, tmp_path, batch_size=2, accelerator=Process(0))
    half = len(contents(tmp_path))
    write_pseudo_labels(*localizer, source, tmp_path, batch_size=2, accelerator=Process(1))
    assert half < len(contents(tmp_path)) and contents(tmp_path) == contents(unbroken)


def test_other_settings_or_classes_change_nothing(localizer, photos, unbroken):
    source = load_tagged_images(str(photos), labels_csv=str(photos / "tags.csv"), class_names=CLASSES)
    before = contents(unbroken)
    with pytest.raises(ValueError, match=r"other settings \(refinement\)"):
        write_pseudo_labels(*localizer, source, unbroken, refinement="pamr", batch_size=2)
    renamed = TaggedImages(source.keys, source.labels, ["sea", "boat", "grass"], {}, source.read)
    with pytest.raises(ValueError, match="sky"):
        write_pseudo_labels(*localizer, renamed, unbroken, batch_size=2)
    assert contents(unbroken) == before


def test_csv_problems_are_named(photos, tmp_path):
    def load(text: str):
        (tmp_path / "tags.csv").write_text(text)
        return load_tagged_images(str(photos), labels_csv=str(tmp_path / "tags.csv"), class_names=CLASSES)

    assert load("file,labels\n0.png,sky; grass\n")[0]["labels"].tolist() == [True, False, True]
    for text, message in (
        ("name,labels\n0.png,sky\n", "'file' and 'labels'"),
        ("file,labels\nnone.png,sky\n", "none.png"),
        ("file,labels\n0.png,\n", r"no labels \(the first: \['0.png'\]\)"),
        ("file,labels\n0.png,dog\n", "label 'dog'"),
        ("file,labels\n0.png,sky\n0.png,boat\n", "more than once"),
    ):
        with pytest.raises(ValueError, match=message):
            load(text)
    with pytest.raises(ValueError, match="no label file"):
        load_tagged_images(str(photos), labels_csv=str(tmp_path / "missing.csv"))


def test_toyscapes_and_hub_layouts_have_tags(tmp_path):
    toys = load_tagged_images("toyscapes", limit=3, size=(32, 32))
    assert len(toys.class_names) == 30 and toys.labels.shape == (3, 30) and toys.images[2].size == (32, 32)
    from datasets import ClassLabel, Dataset, Features, Sequence
    from datasets import Image as ImageFeature

    names = ClassLabel(names=CLASSES)
    features = Features({"image": ImageFeature(), "image_labels": Sequence(names)})
    image = Image.fromarray(np.full((8, 8, 3), 7, dtype=np.uint8))
    Dataset.from_dict({"image": [image, image], "image_labels": [[2], [0, 1]]}, features=features).to_parquet(
        tmp_path / "train.parquet"
    )
    loaded = load_tagged_images(str(tmp_path), "train")
    assert loaded.labels.tolist() == [[False, False, True], [True, True, False]]
    assert loaded[1]["key"] == "1" and loaded.class_names == [["sky"], ["boat"], ["grass"]]


def test_settings_say_what_the_masks_depend_on(unbroken):
    settings = json.loads((unbroken / "settings.json").read_text())
    assert {"classes", "weights", "prototypes", "localization", "refinement", "preprocessing", "data"} <= settings.keys()
