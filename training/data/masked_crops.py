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
from torch.utils.data import Dataset, default_collate
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
        hue_jitter: largest turn of the hue, as a share of the colour circle; mmsegmentation's `PhotoMetricDistortion` has 0.1.
        balanced_share: share of the crops that are placed around a pixel of a class drawn from those of the image, each as
            likely as any other, so that small and thin things are seen as often as sky and road.
        max_class_share: a crop of which one class covers more of the labelled pixels is drawn again, up to 10 times
            (mmsegmentation's `cat_max_ratio`); 1 takes every crop.
        label_stride: pixels of the crop per label, sampled at the centres of the cells; height and width are multiples of it.
        image_mean, image_std: of the normalisation; by default CLIP's.
    """

    height: int
    width: int
    short_side: int
    longest_side: int = 2048
    scale: tuple[float, float] = (0.5, 2.0)
    mirror: bool = True
    colour_jitter: float = 0.3
    max_class_share: float = 1.0
    hue_jitter: float = 0.0
    balanced_share: float = 0.0
    label_stride: int = 1
    image_mean: tuple[float, ...] = tuple(OPENAI_CLIP_MEAN)
    image_std: tuple[float, ...] = tuple(OPENAI_CLIP_STD)

    def __post_init__(self):
        for name in ("height", "width", "short_side", "longest_side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.label_stride < 1 or self.height % self.label_stride or self.width % self.label_stride:
            raise ValueError(
                f"label_stride must divide height and width, {self.height} and {self.width}; got {self.label_stride}."
            )
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be two positive numbers in ascending order, got {self.scale}.")
        if not 0 <= self.colour_jitter < 1:
            raise ValueError(f"colour_jitter must be in [0, 1), got {self.colour_jitter}.")
        if not 0 <= self.hue_jitter <= 0.5:
            raise ValueError(f"hue_jitter must be in [0, 0.5], got {self.hue_jitter}.")
        if not 0 <= self.balanced_share <= 1:
            raise ValueError(f"balanced_share must be in [0, 1], got {self.balanced_share}.")
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
        if self.settings.hue_jitter:
            pixels = turn_hue(pixels, random.uniform(-self.settings.hue_jitter, self.settings.hue_jitter))
        if self.settings.mirror and random.random() < 0.5:
            pixels, mask = pixels[:, ::-1], mask[:, ::-1]
        pixels = normalise(pixels, self.settings.image_mean, self.settings.image_std)
        return {
            "pixel_values": torch.from_numpy(pixels).permute(2, 0, 1).contiguous(),
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


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Samples -> `pixel_values (batch, 3, height, width)` and `labels (batch, height, width)`; lists of maps map by map."""
    return default_collate(list(samples))


def random_crop(
    image: Image.Image, mask: np.ndarray, settings: RandomCropSettings, random: np.random.Generator
) -> tuple[Image.Image, np.ndarray]:
    """Resize and crop both; what a crop has beyond the image is black and ignored. Labels are as coarse as settings say."""
    scale = random.uniform(*settings.scale)
    fit = min(settings.short_side / min(image.size), settings.longest_side / max(image.size))
    width, height = (max(1, round(side * fit * scale)) for side in image.size)
    centre = balanced_centre(mask, settings.balanced_share, random) if settings.balanced_share else None
    for _ in range(MAX_DRAWS if settings.max_class_share < 1 and centre is None else 1):
        left = place_crop(width, settings.width, centre and centre[1], random)
        top = place_crop(height, settings.height, centre and centre[0], random)
        box = (left, top, min(width, left + settings.width), min(height, top + settings.height))
        size = box[2] - box[0], box[3] - box[1]
        # Only the part that is kept is resized. A box in pixels of the image:
        ratio = image.width / width, image.height / height
        source_box = (box[0] * ratio[0], box[1] * ratio[1], box[2] * ratio[0], box[3] * ratio[1])
        rows, columns = (slice(int(source_box[axis]), math.ceil(source_box[axis + 2])) for axis in (1, 0))
        if (
            settings.max_class_share == 1
            or centre is not None
            or largest_share(mask[rows, columns]) <= settings.max_class_share
        ):
            break
    resized = image.resize(size, Image.Resampling.BILINEAR, box=source_box)
    stride = settings.label_stride
    cells = -(-size[0] // stride), -(-size[1] // stride)
    labels = Image.fromarray(mask).resize(cells, Image.Resampling.NEAREST, box=source_box)

    canvas = Image.new("RGB", (settings.width, settings.height))
    canvas.paste(resized)
    padded = np.full((settings.height // stride, settings.width // stride), IGNORE_INDEX, dtype=np.uint8)
    padded[: cells[1], : cells[0]] = np.asarray(labels)
    return canvas, padded


def place_crop(length: int, size: int, share: float | None, random: np.random.Generator) -> int:
    """First pixel of a crop of `size` along a side of `length`: anywhere, or so that the pixel at `share` of it is inside."""
    last = max(0, length - size)
    if share is None:
        return int(random.integers(last + 1))
    return int(np.clip(int(share * length) - random.integers(size), 0, last))


def balanced_centre(mask: np.ndarray, rate: float, random: np.random.Generator) -> tuple[float, float] | None:
    """Where a pixel of a class drawn from those of the image is, as shares of height and width; None in 1 - `rate` of the
    calls, and where nothing is labelled."""
    classes = np.unique(mask[mask != IGNORE_INDEX])
    if random.random() >= rate or not len(classes):
        return None
    rows, columns = np.nonzero(mask == random.choice(classes))
    pixel = random.integers(len(rows))
    return (rows[pixel] + 0.5) / mask.shape[0], (columns[pixel] + 0.5) / mask.shape[1]


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


def turn_hue(pixels: np.ndarray, turn: float) -> np.ndarray:
    """`(height, width, 3)` in [0, 1], the colours turned about the grey axis by `turn` of a circle; greys stay as they are."""
    cosine, sine = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    matrix = cosine * np.eye(3) + sine * across + (1 - cosine) / 3  # Rodrigues' rotation about (1, 1, 1)
    return (pixels @ matrix.T.astype(np.float32)).clip(0, 1)


def normalise(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """`(height, width, 3)` in [0, 1] -> what the vision encoder expects."""
    return ((pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)).astype(np.float32)
