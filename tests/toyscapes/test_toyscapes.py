"""Toyscapes: the same scenes everywhere, masks and words that agree, balanced classes, and files that load again."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_clipseg.toyscapes import (
    CAPTION_NOUNS,
    CLASS_NAMES,
    PART_NAMES,
    SPLITS,
    STUFF_NAMES,
    SYNONYMS,
    THING_NAMES,
    UNSEEN_CLASSES,
    ToyscapesDataset,
    export_imagefolder,
    export_parquet,
    load_toyscapes,
    render,
    toyscapes_features,
    write_contact_sheet,
)
from hf_clipseg.toyscapes.__main__ import main

NOUN_PATTERN = re.compile(
    r"\b(" + "|".join(map(re.escape, sorted(CAPTION_NOUNS, key=len, reverse=True))) + r")\b", re.IGNORECASE
)


def digest(scenes) -> str:
    """Digest of every byte of some scenes."""
    total = hashlib.sha256()
    for scene in scenes:
        for plane in (scene.image, scene.mask, scene.part_mask):
            total.update(plane.tobytes())
        total.update(f"{scene.image_labels} {scene.caption} {scene.key}".encode())
    return total.hexdigest()


SCENES_OF_0_1_0 = {  # by the version of Pillow, which draws
    "11.0.0": "4b93b6cc7560270478952bccb65e8a93f00edf30c9c3ec31317e58ac83a8bb94",
    "12.3.0": "95dc7b6911ec08189121814fe5b6c75463b1c753d8ec6a1b6887e0bf28e83c20",
}


def test_scenes_are_those_of_the_first_release():
    """Figures in the cards were measured on them: a scene that changes makes them untrue."""
    if PIL.__version__ not in SCENES_OF_0_1_0:
        pytest.skip(f"what Pillow {PIL.__version__} draws was not stored")
    scenes = (render(3, index, 40, 56, split, closeup=index % 2 == 1) for index in (9, 4, 0, 7, 11, 12) for split in SPLITS)
    assert digest(scenes) == SCENES_OF_0_1_0[PIL.__version__]


def mentioned(caption: str) -> set[int]:
    """Class ids of the nouns in a caption, longest phrase first."""
    return {CLASS_NAMES.index(CAPTION_NOUNS[noun.lower()]) for noun in NOUN_PATTERN.findall(caption)}


@pytest.fixture(scope="module")
def sample():
    """600 small scenes whose captions leave nothing out."""
    return [render(0, index, 48, 48, omission_rate=0.0) for index in range(600)]


def test_vocabulary():
    assert len(STUFF_NAMES) >= 8 and len(THING_NAMES) >= 16 and len(set(CLASS_NAMES)) == len(CLASS_NAMES) >= 24
    assert CLASS_NAMES == STUFF_NAMES + THING_NAMES and PART_NAMES[0] == "none"
    assert set(SYNONYMS) == set(CLASS_NAMES)
    words = [word for name in CLASS_NAMES for word in (name, *SYNONYMS[name])]
    assert len(words) == len(set(words)), "a word that means two classes"
    assert len(set(UNSEEN_CLASSES) & set(STUFF_NAMES)) >= 2 and len(set(UNSEEN_CLASSES) & set(THING_NAMES)) >= 4


def test_same_bytes_in_a_fresh_process():
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from tests.toyscapes.test_toyscapes import digest, render;"
        "print(digest(render(3, i, 40, 56, 'test', closeup=i % 2 == 1) for i in (9, 4, 0, 7)))"
    )
    root = str(Path(__file__).parents[2])
    fresh = subprocess.run([sys.executable, "-c", program, root], capture_output=True, text=True, check=True, cwd=root)
    assert fresh.stdout.split()[-1] == digest(render(3, i, 40, 56, "test", closeup=i % 2 == 1) for i in (9, 4, 0, 7))


# Shares of the image, measured when version 1.0 was made; rasterisers of other Pillow versions may differ at the edges.
GOLDEN = {
    1: {"sky": 0.287, "sea": 0.486, "lighthouse": 0.166, "fish": 0.062},
    7: {"sky": 0.216, "sea": 0.271, "snow": 0.139, "boat": 0.179, "mountain": 0.036, "rock": 0.082, "balloon": 0.077},
    60: {"brick wall": 0.269, "wooden floor": 0.366, "flower": 0.091, "umbrella": 0.100, "mountain": 0.089, "kite": 0.085},
    65: {"sea": 0.842, "boat": 0.109, "fish": 0.049},
    70: {"sea": 0.871, "flower": 0.056, "fish": 0.073},
    71: {"brick wall": 0.445, "wooden floor": 0.302, "mushroom": 0.049, "boat": 0.097, "kite": 0.049, "cat": 0.058},
}


@pytest.mark.parametrize("index", GOLDEN)
def test_scenes_stay_what_they_were(index):
    scene = render(0, index, 96, 96)
    areas = np.bincount(scene.mask.ravel(), minlength=len(CLASS_NAMES)) / scene.mask.size
    expected = np.zeros(len(CLASS_NAMES))
    for name, area in GOLDEN[index].items():
        expected[CLASS_NAMES.index(name)] = area
    np.testing.assert_allclose(areas, expected, atol=0.01)


def test_splits_and_seeds_share_no_scene():
    images = [render(seed, index, 32, 32, split).image.tobytes() for seed in (0, 1) for split in SPLITS for index in range(25)]
    assert len(set(images)) == len(images)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(16, 80), st.integers(16, 80), st.booleans())
def test_any_size_any_index(seed, index, height, width, closeup):
    scene = render(seed, index, height, width, "validation", closeup)
    assert scene.image.shape == (height, width, 3) and scene.image.dtype == np.uint8
    assert scene.mask.shape == scene.part_mask.shape == (height, width)
    assert scene.mask.max() < len(CLASS_NAMES) and scene.part_mask.max() < len(PART_NAMES)
    assert scene.caption and scene.image_labels


def test_same_scene_at_two_sizes():
    agreement, words = [], []
    for index in range(25):
        small, large = render(0, index, 64, 64), render(0, index, 128, 128)
        agreement.append(np.mean(small.mask == large.mask[::2, ::2]))
        words.append(small.caption == large.caption)
    assert np.mean(agreement) > 0.96 and min(agreement) > 0.9
    assert np.mean(words) > 0.9


def test_labels_follow_the_mask(sample):
    for scene in sample:
        areas = np.bincount(scene.mask.ravel(), minlength=len(CLASS_NAMES)) / scene.mask.size
        assert set(scene.image_labels) == set(np.flatnonzero(areas >= 0.004).tolist())


def test_stuff_has_no_parts_and_things_have(sample):
    masks, parts = np.stack([scene.mask for scene in sample]), np.stack([scene.part_mask for scene in sample])
    assert not parts[masks < len(STUFF_NAMES)].any()
    pairs = (("car", "wheel"), ("house", "roof"), ("boat", "hull"), ("cat", "head"), ("tree", "crown"), ("bird", "wing"))
    for thing, part in pairs:
        of_part = masks[parts == PART_NAMES.index(part)]
        assert (of_part == CLASS_NAMES.index(thing)).sum() > 200, (thing, part)
    assert {PART_NAMES[part] for part in np.unique(parts)} == set(PART_NAMES)


def test_every_class_appears_and_none_is_everywhere(sample):
    shares = {name: np.mean([class_id in scene.image_labels for scene in sample]) for class_id, name in enumerate(CLASS_NAMES)}
    assert min(shares.values()) > 0.04 and max(shares.values()) < 0.6, shares


def test_things_appear_on_any_stuff(sample):
    """No thing implies a stuff class: else a contrastive model learns co-occurrence."""
    for thing in THING_NAMES:
        labels = [set(scene.image_labels) for scene in sample if CLASS_NAMES.index(thing) in scene.image_labels]
        for stuff in range(len(STUFF_NAMES)):
            assert np.mean([stuff in present for present in labels]) < 0.85, (thing, STUFF_NAMES[stuff])


def test_captions_name_what_is_visible(sample):
    for scene in sample:
        assert mentioned(scene.caption) == set(scene.image_labels), scene.caption


@pytest.mark.parametrize("rate", [0.3, 0.7, 1.0])
def test_measured_omission_rate(sample, rate):
    kept = expected = total = 0
    for index, full in enumerate(sample[:300]):
        scene = render(0, index, 48, 48, omission_rate=rate)
        np.testing.assert_array_equal(scene.image, full.image)
        named, visible = mentioned(scene.caption), set(full.image_labels)
        assert named and named <= visible
        kept, total = kept + len(named), total + len(visible)
        expected += len(visible) * (1 - rate) + rate ** len(visible)  # one concept is kept where none would be
    assert kept / total == pytest.approx(expected / total, abs=0.035)


def test_captions_vary(sample):
    assert len({scene.caption for scene in sample}) > 0.95 * len(sample)
    text = " ".join(scene.caption.lower() for scene in sample)
    unused = [noun for name in CLASS_NAMES for noun in SYNONYMS[name] if not re.search(rf"\b{noun}", text)]
    assert not unused


def test_closeups_are_filled_by_what_they_name():
    seen = set()
    for index in range(300):
        scene = render(0, index, 48, 48, closeup=True)
        named = mentioned(scene.caption)
        assert named <= set(scene.image_labels) and len(scene.image_labels) <= 2
        things = [label for label in scene.image_labels if label >= len(STUFF_NAMES)]
        main_class = things[0] if things else scene.image_labels[0]
        assert main_class in named
        assert np.mean(scene.mask == main_class) > 0.1
        seen.add(main_class)
    assert len(seen) == len(CLASS_NAMES)


def test_closeup_rate():
    scenes = ToyscapesDataset("train", (16, 16), 400, closeup_rate=0.25)
    closeups = [scene.key.endswith("closeup") for scene in (scenes[index] for index in range(len(scenes)))]
    assert np.mean(closeups) == pytest.approx(0.25, abs=0.07)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "unknown split 'dev': choose one of train, validation, test"),
        ({"size": (15, 64)}, "at least 16 pixels, got 15 x 64"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"num_samples": 0}, "num_samples must be 1 or more, got 0"),
        ({"omission_rate": 1.2}, "omission_rate must be between 0 and 1, got 1.2"),
        ({"closeup_rate": -0.1}, "closeup_rate must be between 0 and 1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_toyscapes(**{"split": "train", **arguments})


def test_lazy_indexing():
    scenes = ToyscapesDataset("test", (16, 24), 5)
    assert scenes[-1].key == scenes[4].key
    with pytest.raises(IndexError, match="out of range for 5 scenes"):
        scenes[5]


def rows_equal(rows, scenes, columns=("image", "mask", "part_mask")):
    rows = list(rows)
    assert len(rows) == len(scenes)
    for row, scene in zip(rows, (scenes[index] for index in range(len(scenes))), strict=True):
        for column in columns:
            np.testing.assert_array_equal(np.asarray(row[column]), getattr(scene, column))
        assert tuple(row["image_labels"]) == scene.image_labels
        assert (row["caption"], row["key"]) == (scene.caption, scene.key)


def test_map_style_and_streaming_hold_the_scenes(tmp_path):
    chosen = {"size": (20, 33), "num_samples": 12, "closeup_rate": 0.3}
    scenes = ToyscapesDataset("validation", **chosen)
    stored = load_toyscapes("validation", **chosen, cache_dir=str(tmp_path))
    assert stored.features == toyscapes_features() and stored[0]["mask"].mode == "L"
    rows_equal(stored, scenes)
    streamed = load_toyscapes("validation", **chosen, streaming=True)
    assert streamed.features == toyscapes_features()
    rows_equal(streamed, scenes)
    halves = [row["key"] for k in (0, 1) for row in streamed.shard(2, k)]
    assert sorted(halves) == sorted(stored["key"]) and len(set(halves)) == 12


def test_map_style_columns_survive_dataset_operations(tmp_path):
    rows = load_toyscapes("test", (16, 16), 6, cache_dir=str(tmp_path)).shuffle(seed=0).select(range(4))
    assert rows.map(lambda row: {"words": len(row["caption"].split())})["words"][0] >= 1
    rows.save_to_disk(tmp_path / "saved")
    assert datasets.load_from_disk(tmp_path / "saved")["key"][:] == rows["key"][:]


def test_settings_and_processes_do_not_share_a_cache(tmp_path):
    def load(**chosen):
        return load_toyscapes("train", (16, 16), 8, cache_dir=str(tmp_path), **chosen)

    first, other, parallel = load(), load(omission_rate=0.0), load(seed=1, num_proc=2)
    assert first["caption"][:] != other["caption"][:]
    assert first["caption"][:] == load()["caption"][:]
    rows_equal(parallel, ToyscapesDataset("train", (16, 16), 8, seed=1))


def test_parquet_round_trip(tmp_path):
    scenes = [ToyscapesDataset(split, (18, 26), 7) for split in ("train", "test")]
    stale = tmp_path / "data" / "train-00001-of-00002.parquet"
    stale.parent.mkdir()
    stale.write_bytes(b"from an earlier, larger export")
    export_parquet(tmp_path, scenes)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "test-00000-of-00001.parquet",
        "train-00000-of-00001.parquet",
    ]
    loaded = datasets.load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert loaded["train"].features == toyscapes_features()
    rows_equal(loaded["train"], scenes[0])
    rows_equal(loaded["test"], scenes[1])


def test_imagefolder_round_trip(tmp_path):
    scenes = [ToyscapesDataset(split, (18, 26), 5) for split in ("train", "validation")]
    export_imagefolder(tmp_path / "toys", scenes)
    assert tuple((tmp_path / "toys" / "classes.txt").read_text().splitlines()) == CLASS_NAMES
    assert not list(tmp_path.rglob("*.tmp"))
    loaded = datasets.load_dataset(str(tmp_path / "toys"), cache_dir=str(tmp_path / "cache"))
    rows_equal(loaded["train"], scenes[0], columns=("image", "mask"))
    rows_equal(loaded["validation"], scenes[1], columns=("image", "mask"))
    assert loaded["train"][0]["labels"] == [CLASS_NAMES[label] for label in scenes[0][0].image_labels]


def test_contact_sheet(tmp_path):
    path = write_contact_sheet(tmp_path / "sheet.png", columns=3, rows=2, size=32)
    assert Image.open(path).size == (3 * 36 + 4, 2 * 78 + 4)


def test_command_line(tmp_path, capsys):
    main(["export", "--output", str(tmp_path / "toys"), "--format", "imagefolder", "--splits", "test", "--num_samples", "2"])
    assert len(list((tmp_path / "toys" / "test" / "images").iterdir())) == 2
    for arguments, message in (
        (["--splits", "dev"], "unknown split 'dev'"),
        (["--num_samples", "0"], "num_samples must be 1 or more"),
        (["--omission_rate", "2"], "omission_rate must be between 0 and 1"),
        (["--size", "8", "64"], "at least 16 pixels"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["export", "--output", str(tmp_path / "none"), *arguments])
        assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
