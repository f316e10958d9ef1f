"""One way to every data set: Toyscapes, a Hub id, or a folder; with masks (`load_source`) or with captions (`load_captions`).

A folder is a Parquet export, an imagefolder with metadata, a `save_to_disk` folder, or two parallel folders `images/` and
`masks/`.
`python -m training.check_dataset NAME` checks a data set before anything is trained on it.
"""

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from huggingface_hub import hf_hub_download
from PIL import Image

from hf_clipseg.clip.class_files import class_names_of_argument, read_class_file
from hf_clipseg.processing.image_io import load_image
from hf_clipseg.toyscapes.scene_datasets import ToyscapesDataset, code_digest
from hf_clipseg.toyscapes.scene_vocabulary import CLASS_NAMES

from .columns import class_names_in_features, class_names_in_folder, find_column, find_key_column
from .masks import MaskReader, open_mask
from .presets import PRESETS, Preset

logger = logging.getLogger(__name__)

PATH_TYPES = ("string", "large_string", "binary", "large_binary")
UNLABELLED_NAMES = ("unlabeled", "unlabelled", "void", "other", "background", "ignore")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def open_dataset(
    dataset_name: str,
    split: str,
    config_name: str | None = None,
    streaming: bool = False,
    limit: int | None = None,
    seed: int = 0,
) -> datasets.Dataset:
    """Rows of a Hub data set or folder, random access, images left encoded.

    Args:
        streaming: read only the first `limit` rows of a Hub data set, and keep them (encoded) in memory.
        limit: use so many rows, drawn by `seed`; the first ones when streaming.

    Raises:
        ValueError: unknown split (the message lists those that exist), or streaming without a limit.
    """
    folder = Path(dataset_name)
    if streaming:
        if limit is None:
            raise ValueError("streaming needs a number of rows: set limit (--max_train_samples, --limit)")
        stream = datasets.load_dataset(dataset_name, config_name, split=split, streaming=True)
        stream = leave_encoded(stream)
        return datasets.Dataset.from_list(list(itertools.islice(stream, limit)), features=stream.features)
    if folder.is_dir():
        dataset = open_folder(folder, split)
    else:
        dataset = datasets.load_dataset(dataset_name, config_name, split=split)
    if limit is not None and limit < len(dataset):
        dataset = dataset.select(sorted(np.random.default_rng(seed).permutation(len(dataset))[:limit].tolist()))
    return leave_encoded(dataset)


def leave_encoded(dataset):
    """Images as `{"bytes", "path"}`: decoding is ours, so that a broken file is reported by its key."""
    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return dataset


def open_folder(folder: Path, split: str) -> datasets.Dataset:
    """A local folder by what it contains: parallel folders, `save_to_disk`, Parquet, or imagefolder."""
    for images, masks in (
        (folder / split / "images", folder / split / "masks"),
        (folder / "images" / split, folder / "masks" / split),
        (folder / "images", folder / "masks"),
    ):
        if images.is_dir() and masks.is_dir() and not has_metadata(images.parent):
            return open_parallel_folders(images, masks)
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        loaded = datasets.load_from_disk(str(folder))
        if isinstance(loaded, datasets.Dataset):
            return loaded
    else:
        loaded = datasets.load_dataset(str(folder))
    if split not in loaded:
        raise ValueError(f"{folder} has no split {split!r}; it has {list(loaded)}")
    return loaded[split]


def has_metadata(folder: Path) -> bool:
    """Whether an imagefolder's table, which also holds captions, describes the images below `folder`."""
    return any((folder / f"metadata.{suffix}").is_file() for suffix in ("jsonl", "csv", "parquet"))


def open_parallel_folders(images: Path, masks: Path) -> datasets.Dataset:
    """Pairs of files with the same name but for the suffix; an image without a mask, or the reverse, is an error."""
    by_stem = [
        {
            path.relative_to(root).with_suffix("").as_posix(): str(path)
            for path in sorted(root.rglob("*"))
            if path.suffix.lower() in IMAGE_SUFFIXES
        }
        for root in (images, masks)
    ]
    unpaired = sorted(by_stem[0].keys() ^ by_stem[1].keys())
    if unpaired or not by_stem[0]:
        raise ValueError(f"{images} and {masks} must hold the same names, at least one; without a partner: {unpaired[:5]}")
    keys = sorted(by_stem[0])
    columns = {"image": [by_stem[0][key] for key in keys], "mask": [by_stem[1][key] for key in keys], "key": keys}
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())


class SegmentationSource:
    """Images with masks: `source[i]` is `{"image": RGB PIL image, "mask": (H, W) int64, 255 = ignore, "key": str}`.

    Args:
        dataset: rows with encoded images and masks; a mask may also be a path below `folder`.
        read_mask: decodes and relabels one mask.
        class_synonyms: the names of every class in the order of the mask's ids; None where the data set does not say.
            `source.class_names` are the display names alone.
        description: identifies the content, for caches.
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
    ):
        self.dataset, self.image_column, self.mask_column = dataset, image_column, mask_column
        self.key_column = find_key_column(dataset.column_names)
        self.read_mask, self.class_synonyms, self.folder = read_mask, class_synonyms, folder
        self.class_names = [names[0] for names in class_synonyms] if class_synonyms else None
        self.description = description

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.dataset[index]
        key = str(row[self.key_column]) if self.key_column else str(index)
        image = read_image(row[self.image_column], key)
        return paired(image, self.read_mask(self.locate(row[self.mask_column]), key), key)

    def stored_and_relabelled(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids that the mask file holds and what they become, out-of-range ones too: for looking at a data set."""
        row = self.dataset[index]
        key = str(row[self.key_column]) if self.key_column else str(index)
        stored, _ = self.read_mask.stored_ids(open_mask(self.locate(row[self.mask_column]), key), key)
        return stored, self.read_mask.relabel(stored, key)

    def locate(self, value: Any) -> Any:
        """A mask given as a path is looked for beside the data."""
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


def load_source(
    dataset_name: str,
    split: str,
    config_name: str | None = None,
    image_column: str | None = None,
    mask_column: str | None = None,
    classes_file: str | None = None,
    reduce_labels: bool = False,
    id_map: Mapping[int, int] | None = None,
    ignore_label: int | None = None,
    streaming: bool = False,
    limit: int | None = None,
    seed: int = 0,
    size: tuple[int, int] = (128, 128),
) -> SegmentationSource | ToyscapesSource:
    """Images and masks of Toyscapes, a preset, a Hub data set or a folder.

    Args:
        dataset_name: "toyscapes", a name in `presets.PRESETS`, a Hub id, or a folder.
        classes_file: class names, or a file of them (see `class_names_of_argument`); by default those of the preset, the folder
            or the features.
        reduce_labels, id_map, ignore_label: see `MaskReader`.
        limit, streaming, seed: see `open_dataset`; for Toyscapes the seed chooses the scenes.
        size: (height, width) of Toyscapes scenes.
    """
    if dataset_name == "toyscapes":
        return ToyscapesSource(ToyscapesDataset(split, size, limit, seed))
    folder = Path(dataset_name) if Path(dataset_name).is_dir() else None
    preset = None if folder else PRESETS.get(dataset_name)
    if preset:
        dataset_name, reduce_labels = preset.dataset_name, reduce_labels or preset.reduce_labels
        image_column, mask_column = image_column or preset.image_column, mask_column or preset.mask_column
        id_map = id_map or preset.id_map
    dataset = open_dataset(dataset_name, split, config_name, streaming, limit, seed)
    image_column = find_column(image_columns(dataset), "image", image_column)
    mask_column = find_column(image_columns(dataset), "mask", mask_column)
    class_names = choose_class_names(dataset_name, dataset, classes_file, preset, reduce_labels)
    colour_map = preset.colour_map if preset else None
    read_mask = MaskReader(len(class_names) if class_names else None, colour_map, reduce_labels, id_map, ignore_label)
    description = {
        "dataset": dataset_name, "fingerprint": dataset._fingerprint, "columns": [image_column, mask_column],
        "reduce_labels": reduce_labels, "id_map": sorted((id_map or {}).items()), "ignore_label": ignore_label,
    }  # fmt: skip
    return SegmentationSource(dataset, image_column, mask_column, read_mask, class_names, description, folder)


def image_columns(dataset: datasets.Dataset) -> list[str]:
    """Columns that can hold an image or the path of one: numbers and class labels cannot."""

    def fits(feature) -> bool:
        return isinstance(feature, (datasets.Image, dict)) or getattr(feature, "dtype", None) in PATH_TYPES

    return [name for name, feature in dataset.features.items() if fits(feature)]


def choose_class_names(
    dataset_name: str, dataset: datasets.Dataset, classes: str | None, preset: Preset | None, reduce_labels: bool
) -> list[list[str]] | None:
    """Class names from the most specific place that has some; the name of a 0 that means unlabelled is left out."""
    if classes:
        names = class_names_of_argument(classes)
    elif preset:
        names = [[name] for name in preset.class_names or ()] or read_class_file(
            hf_hub_download(dataset_name, "id2label.json", repo_type="dataset")
        )
    else:
        names = class_names_in_folder(dataset_name) or class_names_in_features(dataset.features)
    if names and reduce_labels and names[0][0].lower() in UNLABELLED_NAMES:
        return names[1:]
    return names


def load_captions(
    dataset_name: str,
    split: str,
    config_name: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    streaming: bool = False,
    limit: int | None = None,
    seed: int = 0,
    **toyscapes_options: Any,
) -> CaptionSource | ToyscapesCaptions:
    """Image-caption pairs of Toyscapes, a Hub data set or a folder.

    Args:
        limit, streaming, seed: see `open_dataset`.
        toyscapes_options: `size`, `omission_rate` and `closeup_rate` of `ToyscapesDataset`; unused for others.
    """
    if dataset_name == "toyscapes":
        return ToyscapesCaptions(ToyscapesDataset(split, num_samples=limit, seed=seed, **toyscapes_options))
    dataset = open_dataset(dataset_name, split, config_name, streaming, limit, seed)
    description = {"dataset": dataset_name, "fingerprint": dataset._fingerprint}
    return CaptionSource(dataset, image_column, caption_column, description)
