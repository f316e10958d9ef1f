"""Random crops of images with masks, for every script that trains on masks: scale, crop, mirror, colours.

The recipe is Mask2Former's for semantic segmentation (arXiv 2112.01527, section 4.1), with colours changed in RGB, not
HSV. Everything random about a sample comes from (seed, epoch, index), so an interrupted run sees what an uninterrupted one
would.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from hf_clipseg.constants import IGNORE_INDEX

from ..engine.loop import SampleKey

MAX_DRAWS = 10


@dataclass(frozen=True)
class RandomCropSettings:
    """How crops are made.

    Args:
        height, width: of a crop, in pixels.
        short_side: the image is resized so that its short side has this many pixels, times a random scale.
        longest_side: the long side is kept below this, times the scale.
        scale: smallest and largest random scale.
        mirror: whether half of the crops are mirrored.
        colour_jitter: largest relative change of brightness, contrast and saturation.
        max_class_share: a crop of which one class covers more of the labelled pixels is drawn again, up to 10 times
            (mmsegmentation's `cat_max_ratio`); 1 takes every crop.
    """

    height: int
    width: int
    short_side: int
    longest_side: int = 2048
    scale: tuple[float, float] = (0.5, 2.0)
    mirror: bool = True
    colour_jitter: float = 0.3
    max_class_share: float = 1.0

    def __post_init__(self):
        for name in ("height", "width", "short_side", "longest_side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be two positive numbers in ascending order, got {self.scale}.")
        if not 0 <= self.colour_jitter < 1:
            raise ValueError(f"colour_jitter must be in [0, 1), got {self.colour_jitter}.")
        if not 0 < self.max_class_share <= 1:
            raise ValueError(f"max_class_share must be in (0, 1], got {self.max_class_share}.")


class MaskedCrops(Dataset):
    """Crops of `source`, a sequence of `{"image": RGB PIL image, "mask": (H, W) int64, "key": str}`; indexed with `SampleKey`.

    Args:
        keep: hold decoded images in memory. For small sets that are read many times.
    """

    def __init__(self, source, settings: RandomCropSettings, seed: int = 0, keep: bool = False):
        self.source, self.settings, self.seed = source, settings, seed
        self.kept: dict[int, tuple[Image.Image, np.ndarray]] | None = {} if keep else None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        image, mask = self.read(key.index)
        random = np.random.default_rng((self.seed, key.epoch, key.index))
        image, mask = random_crop(image, mask, self.settings, random)
        pixels = change_colours(np.asarray(image, dtype=np.float32) / 255, self.settings.colour_jitter, random)
        if self.settings.mirror and random.random() < 0.5:
            pixels, mask = pixels[:, ::-1], mask[:, ::-1]
        return {
            "pixel_values": torch.from_numpy(normalise(pixels)).permute(2, 0, 1).contiguous(),
            "labels": torch.from_numpy(mask.astype(np.int64)),
        }

    def read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Image and mask `index`."""
        if self.kept is not None and index in self.kept:
            return self.kept[index]
        sample = self.source[index]
        image, mask = sample["image"], sample["mask"].astype(np.uint8)
        if self.kept is not None:
            self.kept[index] = image, mask
        return image, mask


def collate(samples: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Samples -> `pixel_values (batch, 3, height, width)` and `labels (batch, height, width)`."""
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def random_crop(
    image: Image.Image, mask: np.ndarray, settings: RandomCropSettings, random: np.random.Generator
) -> tuple[Image.Image, np.ndarray]:
    """Resize and crop both; what a crop has beyond the image is black and ignored."""
    scale = random.uniform(*settings.scale)
    fit = min(settings.short_side / min(image.size), settings.longest_side / max(image.size))
    width, height = (max(1, round(side * fit * scale)) for side in image.size)
    for _ in range(MAX_DRAWS if settings.max_class_share < 1 else 1):
        left = int(random.integers(max(0, width - settings.width) + 1))
        top = int(random.integers(max(0, height - settings.height) + 1))
        box = (left, top, min(width, left + settings.width), min(height, top + settings.height))
        size = box[2] - box[0], box[3] - box[1]
        # Only the part that is kept is resized. A box in pixels of the image:
        ratio = image.width / width, image.height / height
        source_box = (box[0] * ratio[0], box[1] * ratio[1], box[2] * ratio[0], box[3] * ratio[1])
        rows, columns = (slice(int(source_box[axis]), math.ceil(source_box[axis + 2])) for axis in (1, 0))
        if settings.max_class_share == 1 or largest_share(mask[rows, columns]) <= settings.max_class_share:
            break
    resized = image.resize(size, Image.Resampling.BILINEAR, box=source_box)
    labels = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST, box=source_box)

    canvas = Image.new("RGB", (settings.width, settings.height))
    canvas.paste(resized)
    padded = np.full((settings.height, settings.width), IGNORE_INDEX, dtype=np.uint8)
    padded[: size[1], : size[0]] = np.asarray(labels)
    return canvas, padded


def largest_share(labels: np.ndarray) -> float:
    """Share of the labelled pixels that the commonest class has; 1 where nothing is labelled."""
    counts = np.bincount(labels[labels != IGNORE_INDEX])
    return float(counts.max() / counts.sum()) if counts.sum() else 1.0


def change_colours(pixels: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and saturation of `(height, width, 3)` in [0, 1], each changed by up to `strength`."""
    brightness, contrast, saturation = random.uniform(1 - strength, 1 + strength, 3).astype(np.float32)
    mean = pixels.mean()
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = grey + (pixels - grey) * saturation
    return (((pixels - mean) * contrast + mean) * brightness).clip(0, 1)


def normalise(pixels: np.ndarray) -> np.ndarray:
    """`(height, width, 3)` in [0, 1] -> what CLIP expects."""
    return ((pixels - np.float32(OPENAI_CLIP_MEAN)) / np.float32(OPENAI_CLIP_STD)).astype(np.float32)
