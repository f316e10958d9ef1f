"""Images with tags instead of masks: Toyscapes, a Hub data set, or a folder (see `tag_files`).

Masks are never read here, so nothing that is trained on these sources can have seen one.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hf_clipseg.clip.text_bank import ClassName, normalise_class_names
from hf_clipseg.localization.prototypes import encode_image_labels
from hf_clipseg.toyscapes.scene_datasets import ToyscapesDataset, code_digest
from hf_clipseg.toyscapes.scene_vocabulary import CLASS_NAMES, SYNONYMS

from .class_sources import class_names_in_features, class_names_in_folder
from .columns import find_column, find_key_column
from .rows import open_dataset
from .source_types import read_image
from .tag_files import TAG_LAYOUTS, labels_table


class TaggedImages:
    """`source[i]` is `{"image": RGB PIL image, "labels": (classes,) bool, "key": str}`; `source.labels` is all of them.

    Args:
        keys: a unique name per image.
        labels: `(images, classes)` bool.
        class_names: names of every class, display name first.
        description: JSON-able, identifies the content.
        read: index -> image.
    """

    def __init__(self, keys: Sequence[str], labels: torch.Tensor, class_names, description: dict[str, Any], read):
        self.keys, self.labels, self.read = list(keys), labels, read
        self.class_names = normalise_class_names(class_names)
        self.description = description
        check_tags(self.keys, labels)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.read(index), "labels": self.labels[index], "key": self.keys[index]}

    @property
    def images(self) -> "ImageView":
        """The images alone, read when asked for."""
        return ImageView(self)


class ImageView(Sequence):
    """The images of `TaggedImages` as a sequence."""

    def __init__(self, source: TaggedImages):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index):
        return self.source.read(range(len(self))[index])


def check_tags(keys: list[str], labels: torch.Tensor) -> None:
    empty = [key for key, tagged in zip(keys, labels.any(1).tolist(), strict=True) if not tagged]
    if empty:
        raise ValueError(f"{len(empty)} images have no labels (the first: {empty[:5]}). Leave them out, or tag them.")
    if len(set(keys)) < len(keys):
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise ValueError(f"Keys must be unique, but {twice[:5]} come more than once.")


def load_tagged_images(
    dataset_name: str,
    split: str = "train",
    labels_csv: str | None = None,
    class_names: Sequence[ClassName] | None = None,
    limit: int | None = None,
    seed: int = 0,
    config_name: str | None = None,
    image_column: str | None = None,
    labels_column: str | None = None,
    size: tuple[int, int] = (128, 128),
    validation_fraction: float | None = None,
    streaming: bool = False,
) -> TaggedImages:
    """Tagged images of any source.

    Args:
        dataset_name: "toyscapes", a folder of images (see `tag_files`), or a Hub id.
        labels_csv: of a folder, where it is not called `tags.csv` or `labels.csv`.
        class_names: all classes in order; by default those of the data set, or all labels of the CSV in alphabetical order.
        limit, seed, validation_fraction, streaming: see `open_dataset`.
        size: of Toyscapes scenes.

    Raises:
        ValueError: an image that does not exist, without labels, or with a label that is no class.
    """
    if dataset_name == "toyscapes":
        return tagged_toyscapes(ToyscapesDataset(split, size, limit, seed))
    layouts = TAG_LAYOUTS
    if labels_csv is not None:
        if not Path(dataset_name).is_dir():
            raise ValueError(f"--labels_csv belongs to a folder of images, but there is no folder {dataset_name}.")
        layouts = {f"images that {labels_csv} lists": partial(labels_table, path=Path(labels_csv))}
    dataset, layout = open_dataset(dataset_name, split, config_name, streaming, limit, seed, validation_fraction, layouts)
    image_column = find_column(dataset.column_names, "image", image_column)
    labels_column = find_column(dataset.column_names, "labels", labels_column)
    names = (
        class_names or class_names_in_folder(dataset_name) or layout.class_names or class_names_in_features(dataset.features)
    )
    if names is None:
        raise ValueError(f"{dataset_name} names no classes: none of its images has a tag. Pass --classes.")
    key_column = find_key_column(dataset.column_names)
    keys = [str(key) for key in dataset[key_column]] if key_column else [str(index) for index in range(len(dataset))]
    return TaggedImages(
        keys, encode_image_labels(list(dataset[labels_column]), names), names,
        {"dataset": Path(dataset_name).name, "fingerprint": dataset._fingerprint},
        lambda index: read_image(dataset[index][image_column], keys[index]),
    )  # fmt: skip


def tagged_toyscapes(scenes: ToyscapesDataset) -> TaggedImages:
    """Scenes with the list of what is visible in them; drawn once to learn the tags, and again when an image is read."""
    from PIL import Image

    drawn = [scenes[index] for index in range(len(scenes))]
    names = [[name, *SYNONYMS[name]] for name in CLASS_NAMES]
    labels = encode_image_labels([list(scene.image_labels) for scene in drawn], names)
    pixels = [scene.image for scene in drawn]
    return TaggedImages(
        [scene.key for scene in drawn], labels, names,
        {"dataset": "toyscapes", "code": code_digest(), **scenes.settings()},
        lambda index: Image.fromarray(pixels[index]),
    )  # fmt: skip
