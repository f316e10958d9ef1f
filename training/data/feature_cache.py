"""What a frozen network makes of a data set, computed once: dense features and label maps of fixed crops.

An epoch over the cache costs no rendering, decoding, resizing or encoder pass. A disk cache is keyed on everything that decides
its content (the data, the crops, the preprocessing, the weights), written under a temporary name and renamed when complete.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from hf_clipseg.atomic import claim_folder
from hf_clipseg.clip.text_bank import weights_fingerprint

from ..engine.loop import SampleKey

logger = logging.getLogger(__name__)

VERSION = 1  # raise when the content of a cache would change for the same key


@dataclass(frozen=True)
class CropSettings:
    """Square crops of an image, decided by (seed, image, number of the crop) alone.

    Args:
        image_size: side of a crop in pixels.
        crops_per_image: crop 0 is the centre of the image at the scale at which its short side fits; every further one has a
            random place, a random scale up to `max_scale`, and is mirrored half of the time.
        max_scale: how much larger than the crop the short side can get.
        label_size: side of the label maps; they are sampled at the centres of a grid of so many cells.
        seed: of the random crops.
    """

    image_size: int
    crops_per_image: int = 1
    max_scale: float = 2.0
    label_size: int | None = None
    seed: int = 0

    def __post_init__(self):
        for name in ("image_size", "crops_per_image"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.max_scale < 1:
            raise ValueError(f"max_scale must be at least 1, got {self.max_scale}.")


def crop(
    processor, image, mask: np.ndarray, settings: CropSettings, index: int, number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Crop `number` of image `index`: normalised pixels `(3, S, S)` and labels `(L, L)` int64."""
    random = np.random.default_rng((settings.seed, index, number))
    side = settings.image_size
    scale = 1.0 if number == 0 else random.uniform(1.0, settings.max_scale)
    size = {"shortest_edge": round(side * scale), "longest_edge": 10**6}
    inputs = processor(images=image, segmentation_maps=mask, size=size, size_divisor=1, return_tensors="pt")
    pixels, labels = inputs["pixel_values"][0], inputs["labels"][0]
    place = (0.5, 0.5) if number == 0 else random.random(2)
    top, left = (int((length - side) * share) for length, share in zip(labels.shape, place, strict=True))
    pixels = pixels[:, top : top + side, left : left + side]
    labels = labels[top : top + side, left : left + side]
    if number and random.random() < 0.5:
        pixels, labels = pixels.flip(-1), labels.flip(-1)
    if settings.label_size is not None:
        labels = F.interpolate(labels[None, None].float(), size=(settings.label_size,) * 2, mode="nearest-exact")[0, 0].long()
    return pixels, labels


class CropCache(Dataset):
    """An encoder's output and the label map of every crop of a data set.

    `cache[i]` is `(encoded, labels)`: `encoded` as float32 of whatever shape the encoder gives, `labels (L, L)` int64.

    Args:
        source: `len()`, items `{"image", "mask"}` and `description` (JSON-able, identifies the content). It checks its labels.
        processor: the `SegmentationProcessor` that resizes and normalises.
        settings: which crops.
        encode: `(batch, 3, S, S)` pixels -> `(batch, ...)`; kept in half precision.
        encoder_identity: JSON-able, changes whenever `encode` would give something else.
        cache_dir: folder for the files; None keeps everything in memory.
        batch_size: crops per call of `encode`.
    """

    def __init__(
        self,
        source,
        processor,
        settings: CropSettings,
        encode: Callable[[torch.Tensor], torch.Tensor],
        encoder_identity: Any,
        cache_dir: str | Path | None = None,
        batch_size: int = 16,
    ):
        self.source, self.processor, self.settings, self.batch_size = source, processor, settings, batch_size
        self.encode = encode
        self.description = {
            "version": VERSION,
            "crops": asdict(settings),
            "data": source.description,
            "images": len(source),
            "preprocessing": processor.image_processor.to_dict(),
            "encoder": encoder_identity,
        }
        if cache_dir is None:
            self.encoded, self.labels = self._compute(np.empty)
        else:
            self.encoded, self.labels = self._open_or_write(Path(cache_dir))

    def __len__(self) -> int:
        return len(self.source) * self.settings.crops_per_image

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        encoded = torch.from_numpy(self.encoded[index].astype(np.float32))
        return encoded, torch.from_numpy(self.labels[index].astype(np.int64))

    def key(self) -> str:
        """Digest of everything that decides the content."""
        return hashlib.sha256(json.dumps(self.description, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _open_or_write(self, cache_dir: Path) -> tuple[np.ndarray, np.ndarray]:
        folder = cache_dir / f"features-{self.key()}"
        if not folder.is_dir():
            names = iter(("encoded", "labels"))
            with claim_folder(folder) as partial:
                self._compute(
                    lambda shape, dtype: np.lib.format.open_memmap(partial / f"{next(names)}.npy", "w+", dtype, shape)
                )
                (partial / "description.json").write_text(json.dumps(self.description, indent=2, default=str))
        logger.info("features of %d crops: %s", len(self), folder)
        return tuple(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("encoded", "labels"))

    def _compute(self, allocate: Callable[[tuple[int, ...], Any], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Encode all crops into arrays from `allocate(shape, dtype)`; the encoder's first output decides the shape."""
        encoded = labels = None
        first = 0
        for pixels, maps in tqdm(self._batches(), total=-(-len(self) // self.batch_size), desc="features", mininterval=5):
            with torch.no_grad():
                features = self.encode(pixels).to("cpu", torch.float16).numpy()
            if encoded is None or labels is None:
                encoded = allocate((len(self), *features.shape[1:]), np.float16)
                labels = allocate((len(self), *maps.shape[1:]), np.uint8)
            encoded[first : first + len(maps)], labels[first : first + len(maps)] = features, maps.numpy()
            first += len(maps)
        if encoded is None or labels is None:
            raise ValueError("The data set is empty.")
        return encoded, labels

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All crops in order, `(pixels, labels)` stacked; the crops of an image stand next to each other."""
        pending = []
        for index in range(len(self.source)):
            sample = self.source[index]
            for number in range(self.settings.crops_per_image):
                pending.append(crop(self.processor, sample["image"], sample["mask"], self.settings, index, number))
                if len(pending) == self.batch_size:
                    yield stack(pending)
                    pending = []
        if pending:
            yield stack(pending)


def stack(crops: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    pixels, labels = zip(*crops, strict=True)
    return torch.stack(pixels), torch.stack(labels)


def cache_features(model, source, processor, settings: CropSettings, **options) -> CropCache:
    """The dense features `(h, w, dim)` of `model`, any method with a frozen `model.clip` and `dense_features`.

    Args:
        options: `cache_dir` and `batch_size` of `CropCache`.
    """
    identity = {
        "weights": [weights_fingerprint(module) for module in (model.clip.vision_model, model.clip.visual_projection)],
        "attention_variant": model.config.attention_variant,
        "keep_residual": model.config.keep_residual,
        "dtype": str(model.dtype),
    }

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return model.dense_features(pixels.to(model.device, model.dtype))

    return CropCache(source, processor, settings, encode, identity, **options)


def cache_pixels(source, processor, settings: CropSettings, **options) -> CropCache:
    """The normalised pixels `(3, S, S)` themselves, for training an encoder; saves rendering, decoding and resizing."""
    return CropCache(source, processor, settings, lambda pixels: pixels, "pixels", **options)


class CachedFeatures(Dataset):
    """Training samples of a `CropCache` of features; indexed with a `SampleKey`.

    Args:
        cache: of `(blocks, h, w, width)`, or of maps of several sizes, flattened and joined.
        shapes: `(channels, h, w)` of these maps.
    """

    def __init__(self, cache: CropCache, shapes: Sequence[Sequence[int]] | None = None):
        self.cache, self.shapes = cache, shapes

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        encoded, labels = self.cache[key.index]
        if self.shapes is None:
            return {"block_maps": encoded, "labels": labels}
        flat = encoded.split([math.prod(shape) for shape in self.shapes])
        return {"block_maps": [part.view(*shape) for part, shape in zip(flat, self.shapes, strict=True)], "labels": labels}


def cached_maps(
    source,
    processor,
    settings: CropSettings,
    encode: Callable[[torch.Tensor], torch.Tensor | list[torch.Tensor]],
    encoder_identity: Any,
    cache_dir: str | Path | None = None,
) -> CachedFeatures:
    """What `encode_blocks` of a method with a frozen vision encoder gives, for every crop; arguments as of `CropCache`."""
    with torch.no_grad():
        example = encode(torch.zeros(1, 3, settings.image_size, settings.image_size))
    if isinstance(example, torch.Tensor):
        return CachedFeatures(CropCache(source, processor, settings, encode, encoder_identity, cache_dir))

    def joined(pixels: torch.Tensor) -> torch.Tensor:
        return torch.cat([feature_map.flatten(1) for feature_map in encode(pixels)], dim=1)

    cache = CropCache(source, processor, settings, joined, encoder_identity, cache_dir)
    return CachedFeatures(cache, [feature_map.shape[1:] for feature_map in example])
