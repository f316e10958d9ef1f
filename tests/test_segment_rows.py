"""Rows of tables, as Ray Data and `datasets.map` hand them over, against `segment`."""

import io
import os

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from hf_clipseg import segment
from hf_clipseg.checkpoints import load_checkpoint
from hf_clipseg.segment_rows import SegmentRows

from .shipped_label_maps import CARDS
from .tiny import save_tiny_clip

CHECKPOINT = str(CARDS / "mask-clip-toyscapes")


def png(seed: int) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 255, (5, 6 + seed % 2, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((60 + 10 * (seed % 2), 50)).save(file, "PNG")
    return file.getvalue()


def expected_maps(pictures) -> list[np.ndarray]:
    loaded = load_checkpoint(CHECKPOINT)
    return [segment(loaded.model, loaded.processor, [picture])[0] for picture in pictures]


def pixel_values(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)))


def test_columns_in_columns_out():
    pictures = [png(0), b"no picture", png(1)]
    columns = {"id": np.array([7, 8, 9]), "image": np.array(pictures, dtype=object)}
    found = SegmentRows(CHECKPOINT, workers=2)(columns)
    assert sorted(found) == ["areas", "error", "height", "id", "ids", "label_map", "names", "width"]
    assert list(found["id"]) == [7, 8, 9] and list(found["width"]) == [60, 0, 70]
    assert found["error"][0] == found["error"][2] == "" and "is no image that can be read" in found["error"][1]
    for place, label_map in zip((0, 2), expected_maps([pictures[0], pictures[2]]), strict=True):
        assert np.mean(pixel_values(found["label_map"][place]) == label_map) > 0.999
        assert sum(found["areas"][place]) == pytest.approx(1) and len(found["names"][place]) == len(found["ids"][place])


def test_datasets_map_takes_it():
    rows = Dataset.from_dict({"image": [{"bytes": png(seed), "path": None} for seed in range(3)], "key": list("abc")})
    found = rows.map(SegmentRows(CHECKPOINT), batched=True, batch_size=2, remove_columns="image")
    assert found["key"][:] == ["a", "b", "c"]
    assert [pixel_values(file).shape for file in found["label_map"]] == [(50, 60), (50, 70), (50, 60)]


def test_a_model_without_classes_wants_some(tmp_path):
    with pytest.raises(ValueError, match="pass class_names"):
        SegmentRows(str(save_tiny_clip(tmp_path)))


def test_ray_data_with_two_workers():
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")  # a busy machine needs more than the usual 30 seconds
    ray = pytest.importorskip("ray", reason="Ray is an optional extra")
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    try:
        rows = ray.data.from_items([{"key": seed, "image": png(seed)} for seed in range(8)], override_num_blocks=4)
        rows = rows.map_batches(SegmentRows, fn_constructor_args=[CHECKPOINT], concurrency=2, batch_size=2)
        found = {row["key"]: row for row in rows.take_all()}
    finally:
        ray.shutdown()
    assert sorted(found) == list(range(8))
    for seed, label_map in enumerate(expected_maps([png(seed) for seed in range(8)])):
        assert np.mean(pixel_values(found[seed]["label_map"]) == label_map) > 0.999 and found[seed]["error"] == ""
