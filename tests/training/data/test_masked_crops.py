"""Crops of images with masks: the mask goes where the image goes, and everything is decided by seed, epoch and index."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from training.data.masked_crops import MaskedCrops, RandomCropSettings, collate, largest_share, random_crop, turn_hue
from training.engine.loop import SampleKey

COLOURS = np.array([(200, 30, 40), (40, 180, 60), (50, 60, 220)], dtype=np.uint8)


class Source:
    """Stripes whose colour is their class."""

    def __init__(self, height=40, width=60):
        mask = (np.arange(width) // (width // 3)).clip(0, 2)
        self.mask = np.broadcast_to(mask, (height, width)).astype(np.int64).copy()
        self.reads = 0

    def __len__(self):
        return 1

    def __getitem__(self, index):
        self.reads += 1
        return {"image": Image.fromarray(COLOURS[self.mask]), "mask": self.mask, "key": "stripes"}


def sample(epoch=0, seed=0, **fields):
    settings = RandomCropSettings(**({"height": 32, "width": 24, "short_side": 40, "colour_jitter": 0.0} | fields))
    return MaskedCrops(Source(), settings, seed)[SampleKey(0, epoch, 0)]


@pytest.mark.parametrize("epoch", range(6))
def test_mask_and_pixels_stay_together(epoch):
    crop = sample(epoch, scale=(1.0, 2.0))
    assert crop["pixel_values"].shape == (3, 32, 24) and crop["labels"].shape == (32, 24)
    assert crop["labels"].dtype == torch.int64 and crop["pixel_values"].dtype == torch.float32
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    pixels = (crop["pixel_values"] * std + mean).permute(1, 2, 0) * 255
    nearest = (pixels[:, :, None] - torch.from_numpy(COLOURS).float()).norm(dim=-1).argmin(-1)
    assert (nearest == crop["labels"]).float().mean() > 0.95  # colours mix where stripes meet


def test_same_key_same_crop():
    first, again, other_epoch, other_seed = (sample(3), sample(3), sample(4), sample(3, seed=1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pixel_values"], other_epoch["pixel_values"])
    assert not torch.equal(first["pixel_values"], other_seed["pixel_values"])


@pytest.mark.parametrize("stride", [2, 4])
def test_coarse_labels_are_those_at_the_centres_of_their_cells(stride):
    """Of a picture whose labels are its columns: cell c shows the column at (c + 0.5) * stride; the pixels stay as they are."""
    mask = np.broadcast_to(np.arange(48), (40, 48)).astype(np.uint8)
    image = Image.fromarray(np.repeat(mask[..., None], 3, axis=2))
    settings = RandomCropSettings(40, 48, short_side=40, scale=(1.0, 1.0), label_stride=stride)
    crop, labels = random_crop(image, mask, settings, np.random.default_rng(0))
    assert np.array_equal(np.asarray(crop), np.asarray(image))
    assert np.array_equal(labels, np.broadcast_to(np.arange(stride // 2, 48, stride), (40 // stride, 48 // stride)))
    small = sample(height=64, width=64, short_side=40, scale=(1.0, 1.0), label_stride=stride)["labels"]
    assert small.shape == (64 // stride, 64 // stride)
    assert (small[-(-40 // stride) :] == 255).all() and (small[: 40 // stride] != 255)[:, : 60 // stride].all()


def test_what_lies_beyond_the_image_is_ignored():
    crop = sample(scale=(0.5, 0.5), mirror=False)  # 20 x 30 pixels in a crop of 32 x 24
    assert (crop["labels"][20:] == 255).all() and (crop["labels"][:20] != 255).all()


def test_half_of_the_crops_are_mirrored():
    starts = [int(sample(epoch, width=60, scale=(1.0, 1.0))["labels"][0, 0]) for epoch in range(40)]
    assert set(starts) == {0, 2} and 10 < starts.count(2) < 30
    assert {int(sample(epoch, width=60, scale=(1.0, 1.0), mirror=False)["labels"][0, 0]) for epoch in range(9)} == {0}


def test_colours_change_within_bounds_and_labels_do_not():
    plain, jittered = sample(), sample(colour_jitter=0.3)
    assert torch.equal(plain["labels"], jittered["labels"])
    assert not torch.allclose(plain["pixel_values"], jittered["pixel_values"])


def test_images_are_read_once_where_asked():
    for keep, reads in ((True, 1), (False, 3)):
        source = Source()
        crops = MaskedCrops(source, RandomCropSettings(32, 24, 40), keep=keep)
        batch = collate([crops[SampleKey(0, epoch, 0)] for epoch in range(3)])
        assert source.reads == reads and batch["pixel_values"].shape == (3, 3, 32, 24)


def test_crops_of_one_class_are_drawn_again():
    """Crops of a third of the width lie in one stripe as often as not; with the rule of mmsegmentation almost never."""

    def shares(limit):
        fields = {"width": 14, "scale": (1.0, 1.0), "mirror": False, "max_class_share": limit}
        crops = [sample(epoch, **fields)["labels"] for epoch in range(60)]
        return [float(torch.bincount(crop[crop != 255]).max() / (crop != 255).sum()) for crop in crops]

    assert sum(share > 0.75 for share in shares(1.0)) > 30
    assert sum(share > 0.75 for share in shares(0.75)) < 6
    assert largest_share(np.array([255, 255])) == 1.0 and largest_share(np.array([1, 1, 2, 255])) == 2 / 3


def test_small_things_are_seen_as_often_as_large_ones():
    """One thin post in a field: of crops placed anywhere few hold it, of balanced ones at least those for its class."""
    mask = np.zeros((60, 300), dtype=np.uint8)
    mask[:, 200:203] = 1
    image = Image.fromarray(COLOURS[mask])

    def rate(share):
        settings = RandomCropSettings(30, 30, 60, scale=(1.0, 1.0), balanced_share=share)
        crops = [random_crop(image, mask, settings, np.random.default_rng(seed))[1] for seed in range(200)]
        return np.mean([(labels == 1).any() for labels in crops])

    chance = 32 / 271  # first columns from which the crop reaches the post
    assert abs(rate(0.0) - chance) < 0.06
    assert abs(rate(1.0) - (0.5 + 0.5 * chance)) < 0.08
    everywhere = RandomCropSettings(30, 30, 60, balanced_share=1.0)
    assert random_crop(image, np.full_like(mask, 255), everywhere, np.random.default_rng(0))[1].shape == (30, 30)


def test_hue_turns_about_grey():
    primaries = np.eye(3, dtype=np.float32)[None]
    np.testing.assert_allclose(turn_hue(primaries, 1 / 3), primaries[:, [1, 2, 0]], atol=1e-6)
    grey = np.full((1, 1, 3), 0.4, dtype=np.float32)
    np.testing.assert_allclose(turn_hue(grey, 0.17), grey, atol=1e-6)
    assert not torch.allclose(sample()["pixel_values"], sample(hue_jitter=0.1)["pixel_values"])


def test_extreme_shapes():
    settings = RandomCropSettings(16, 16, 16, longest_side=64)
    mask = np.zeros((2, 500), dtype=np.uint8)
    image, labels = random_crop(Image.fromarray(COLOURS[mask]), mask, settings, np.random.default_rng(0))
    assert image.size == (16, 16) and (labels == 0).any() and (labels == 255).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label_stride": 3}, "label_stride must divide"),
        ({"height": 0}, "height"),
        ({"scale": (2.0, 1.0)}, "ascending"),
        ({"colour_jitter": 1.0}, "colour_jitter"),
        ({"hue_jitter": 0.6}, "hue_jitter"),
        ({"balanced_share": -0.1}, "balanced_share"),
    ],
)
def test_impossible_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        RandomCropSettings(**({"height": 8, "width": 8, "short_side": 8} | fields))
