"""Cached features are what the model gives, and a cache is never read for other data, crops or weights."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from hf_clipseg import MvpSegForSemanticSegmentation, SegmentationProcessor
from training.data.feature_cache import CropSettings, cache_features, cache_pixels, crop

from ...tiny import save_tiny_clip


class Source:
    """Random images of several sizes with 3 classes; a data set as the training scripts see one."""

    def __init__(self, count=5, seed=0):
        self.description = {"random": seed, "count": count}
        generator = np.random.default_rng(seed)
        sizes = [(32, 32), (40, 33), (50, 90), (20, 61), (32, 48)]
        self.items = [
            {
                "image": Image.fromarray(generator.integers(0, 256, (*sizes[index % 5], 3), dtype=np.uint8)),
                "mask": generator.integers(0, 3, sizes[index % 5]),
                "key": f"image-{index}",
            }
            for index in range(count)
        ]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


@pytest.fixture(scope="module")
def processor(clip_folder):
    return SegmentationProcessor.from_clip(clip_folder)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def model(clip_folder):
    torch.manual_seed(0)
    return MvpSegForSemanticSegmentation.from_clip(clip_folder, num_prompt_tokens=4)


def test_the_first_crop_of_a_square_image_of_the_right_size_is_the_image(processor):
    sample = Source()[0]
    pixels, labels = crop(processor, sample["image"], sample["mask"], CropSettings(32), 0, 0)
    assert torch.equal(
        pixels, processor(images=sample["image"], size={"shortest_edge": 32, "longest_edge": 99})["pixel_values"][0]
    )
    assert np.array_equal(labels.numpy(), sample["mask"])
    _, small = crop(processor, sample["image"], sample["mask"], CropSettings(32, label_size=8), 0, 0)
    assert np.array_equal(small.numpy(), sample["mask"][2::4, 2::4])


@pytest.mark.parametrize("number", range(4))
def test_pixels_and_labels_of_a_crop_stay_together(processor, number):
    """An image whose grey value is its label: the crop of one predicts the crop of the other."""
    mask = (np.arange(60)[:, None] // 30 * 2 + np.arange(80) // 40 == 1).astype(np.int64)
    image = Image.fromarray((mask * 255).astype(np.uint8)).convert("RGB")
    pixels, labels = crop(processor, image, mask, CropSettings(32, 4, seed=3), 7, number)
    assert pixels.shape == (3, 32, 32) and labels.shape == (32, 32)
    if labels.unique().numel() == 2:
        assert ((pixels[0] > pixels[0].mean()) == (labels == 1)).float().mean() > 0.97


def test_features_and_labels_by_index(model, processor):
    source, settings = Source(), CropSettings(32, 2, label_size=8)
    cache = cache_features(model, source, processor, settings, batch_size=3)
    assert len(cache) == 10
    for index in (0, 5, 9):
        sample = source[index // 2]
        pixels, labels = crop(processor, sample["image"], sample["mask"], settings, index // 2, index % 2)
        features, cached_labels = cache[index]
        with torch.no_grad():
            expected = model.dense_features(pixels[None])[0]
        torch.testing.assert_close(features, expected, atol=1e-3, rtol=0)  # half precision
        assert features.dtype == torch.float32 and torch.equal(cached_labels, labels)


def test_disk_equals_memory_and_is_computed_once(model, processor, tmp_path):
    source, settings = Source(), CropSettings(32)
    in_memory = cache_features(model, source, processor, settings)
    first = cache_features(model, source, processor, settings, cache_dir=tmp_path)
    source.items = None  # a second pass over the data would fail

    class Closed(Source):
        def __getitem__(self, index):
            raise RuntimeError("the data was read again")

    second = cache_features(model, Closed(), processor, settings, cache_dir=tmp_path)
    for cache in (first, second):
        assert np.array_equal(cache.encoded, in_memory.encoded) and np.array_equal(cache.labels, in_memory.labels)
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []
    folder = tmp_path / f"features-{first.key()}"
    assert json.loads((folder / "description.json").read_text())["crops"]["image_size"] == 32


def test_whatever_changes_the_features_changes_the_key(model, clip_folder, processor):
    def key(model=model, source=None, settings=None, processor=processor):
        return cache_features(model, source or Source(), processor, settings or CropSettings(32)).key()

    keys = [key(), key(source=Source(seed=1)), key(settings=CropSettings(32, 2)), key(settings=CropSettings(40))]
    keys.append(key(processor=SegmentationProcessor.from_clip(clip_folder, size={"shortest_edge": 8, "longest_edge": 9})))
    keys.append(cache_pixels(Source(), processor, CropSettings(32)).key())
    assert key() == keys[0]
    model.config.keep_residual = False
    keys.append(key())
    with torch.no_grad():
        model.clip.visual_projection.weight[0, 0] += 1e-3
    keys.append(key())
    with torch.no_grad():
        model.prompts.contexts += 1  # text weights decide nothing here
    assert key() == keys[-1]
    assert len(set(keys)) == len(keys)


def test_an_interrupted_cache_is_not_taken_for_a_finished_one(model, processor, tmp_path):
    class Broken(Source):
        def __getitem__(self, index):
            if index == 4:
                raise OSError("disk gone")
            return super().__getitem__(index)

    with pytest.raises(OSError, match="disk gone"):
        cache_features(model, Broken(), processor, CropSettings(32), cache_dir=tmp_path, batch_size=2)
    cache = cache_features(model, Source(), processor, CropSettings(32), cache_dir=tmp_path)
    assert np.array_equal(cache.encoded, cache_features(model, Source(), processor, CropSettings(32)).encoded)


def test_impossible_caches_are_refused(model, processor):
    with pytest.raises(ValueError, match="empty"):
        cache_features(model, Source(count=0), processor, CropSettings(32))
    with pytest.raises(ValueError, match="crops_per_image must be at least 1"):
        CropSettings(32, 0)
