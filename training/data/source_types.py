"""What loading gives: images with masks, images with captions, and Toyscapes as either. `data` opens them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from hf_clipseg.processing.image_io import load_image
from hf_clipseg.toyscapes.scene_datasets import ToyscapesDataset, code_digest
from hf_clipseg.toyscapes.scene_vocabulary import CLASS_NAMES

from .columns import find_column, find_key_column
from .masks import MaskReader


class SegmentationSource:
    """Images with masks: `source[i]` is `{"image": RGB PIL image, "mask": (H, W) int64, 255 = ignore, "key": str}`.

    Args:
        dataset: rows with encoded images and masks; a mask may also be a path below `folder`.
        read_mask: decodes and relabels one mask.
        class_synonyms: the names of every class in the order of the mask's ids; None where the data set does not say.
            `source.class_names` are the display names alone.
        description: identifies the content, for caches.
        decode_mask: what the mask column holds -> what `read_mask` reads; None: it holds images.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        image_column: str,
        mask_column: str,
        read_mask: MaskReader,
        class_synonyms: Sequence[Sequence[str]] | None,
        description: dict[str, Any],
        folder: Path | None = None,
        decode_mask: Callable[[Any], Any] | None = None,
    ):
        self.dataset, self.image_column, self.mask_column = dataset, image_column, mask_column
        self.key_column = find_key_column(dataset.column_names)
        self.read_mask, self.class_synonyms, self.folder = read_mask, class_synonyms, folder
        self.class_names = [names[0] for names in class_synonyms] if class_synonyms else None
        self.decode_mask, self.description = decode_mask, description

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        key, image, mask = self.stored(index)
        return paired(read_image(image, key), self.read_mask(mask, key), key)

    def stored(self, index: int) -> tuple[str, Any, Any]:
        """Key, image and mask of a row as they are stored: for looking at a data set."""
        row = self.dataset[index]
        key = str(row[self.key_column]) if self.key_column else str(index)
        return key, row[self.image_column], self.locate(row[self.mask_column])

    def locate(self, value: Any) -> Any:
        """A mask given as a path is looked for beside the data."""
        if self.decode_mask is not None:
            return self.decode_mask(value)
        return self.folder / value if isinstance(value, str) and self.folder is not None else value


def paired(image: Image.Image, mask: np.ndarray, key: str) -> dict[str, Any]:
    """One sample, after the check that mask and image fit each other."""
    if mask.shape != (image.height, image.width):
        raise ValueError(
            f"image and mask of {key!r} differ in size (height, width): {(image.height, image.width)} and {mask.shape}; "
            "resize the mask with nearest neighbour, or check that the files belong together"
        )
    return {"image": image, "mask": mask, "key": key}


class ToyscapesSource:
    """Toyscapes scenes as a `SegmentationSource`; drawn when they are asked for."""

    class_names = CLASS_NAMES
    class_synonyms = [[name] for name in CLASS_NAMES]

    def __init__(self, scenes: ToyscapesDataset):
        self.scenes = scenes
        self.description = {"dataset": "toyscapes", "code": code_digest(), **scenes.settings()}

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene = self.scenes[index]
        return paired(Image.fromarray(scene.image), scene.mask.astype(np.int64), scene.key)


class CaptionSource:
    """Images with captions: `source[i]` is `{"image": RGB PIL image, "captions": list of str, "key": str}`.

    `description` identifies the content, for caches.
    """

    def __init__(
        self, dataset: datasets.Dataset, image_column: str | None, caption_column: str | None, description: dict[str, Any]
    ):
        self.dataset = dataset
        self.image_column = find_column(dataset.column_names, "image", image_column)
        self.caption_column = find_column(dataset.column_names, "caption", caption_column)
        self.key_column = find_key_column(dataset.column_names)
        self.description = description | {"columns": [self.image_column, self.caption_column]}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.dataset[index]
        key = str(row[self.key_column]) if self.key_column else str(index)
        captions = row[self.caption_column]
        captions = [captions] if isinstance(captions, str) else [text for text in captions or () if text is not None]
        if not captions:
            raise ValueError(f"image {key!r} has no caption: column {self.caption_column!r} is empty. Leave the row out")
        return {"image": read_image(row[self.image_column], key), "captions": captions, "key": key}


class ToyscapesCaptions:
    """Toyscapes scenes and close-ups as a `CaptionSource`; drawn when they are asked for."""

    def __init__(self, scenes: ToyscapesDataset):
        self.scenes = scenes
        self.description = {"dataset": "toyscapes", "code": code_digest(), **scenes.settings()}

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene = self.scenes[index]
        return {"image": Image.fromarray(scene.image), "captions": [scene.caption], "key": scene.key}


def read_image(value: Any, key: str) -> Image.Image:
    """An encoded image (or a PIL image) as RGB; a broken one is reported with its key."""
    content = value if not isinstance(value, dict) else value["bytes"] if value["bytes"] is not None else value["path"]
    try:
        return load_image(content)
    except ValueError as error:
        raise ValueError(f"image {key!r}: {error}") from error
