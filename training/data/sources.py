"""One way to every data set: Toyscapes, a Hub id, or a folder; with masks (`load_source`) or with captions (`load_captions`).

What folders may look like is in `mask_layouts` and `caption_files`, what comes out in `source_types`.
`python -m training.check_dataset NAME` checks a data set before anything is trained on it.
"""

import hashlib
import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from huggingface_hub import hf_hub_download

from hf_clipseg.clip.class_files import class_names_of_argument, read_class_file
from hf_clipseg.constants import IGNORE_INDEX
from hf_clipseg.toyscapes.scene_datasets import ToyscapesDataset

from .caption_files import CAPTION_LAYOUTS
from .colour_maps import class_names_of_colours, colour_map_in_folder, ids_of_colours, read_colour_map
from .columns import class_names_in_features, class_names_in_folder, find_column
from .id_maps import read_id_map
from .layouts import Layout, Recogniser, open_split, recognise
from .mask_layouts import MASK_LAYOUTS
from .masks import Colour, MaskReader, holds_voc_colours, voc_palette
from .presets import PRESETS, Preset
from .source_types import CaptionSource, SegmentationSource, ToyscapesCaptions, ToyscapesSource

logger = logging.getLogger(__name__)

PATH_TYPES = ("string", "large_string", "binary", "large_binary")
UNLABELLED_NAMES = ("unlabeled", "unlabelled", "void", "other", "background", "ignore")


def open_dataset(
    dataset_name: str,
    split: str,
    config_name: str | None = None,
    streaming: bool = False,
    limit: int | None = None,
    seed: int = 0,
    validation_fraction: float | None = None,
    layouts: Mapping[str, Recogniser] = MASK_LAYOUTS,
) -> tuple[datasets.Dataset, Layout]:
    """Rows of a Hub data set or folder, random access, images left encoded; and what the layout says about masks.

    Args:
        streaming: read only the first `limit` rows, see `open_stream`.
        limit: use so many rows, drawn by `seed`; the first ones when streaming.
        validation_fraction: divide the training split in "train" and "validation", see `open_split`.
        layouts: what a folder may look like.

    Raises:
        ValueError: a split that does not exist or is empty, a layout that is not understood, or streaming without a limit.
    """
    if streaming:
        if validation_fraction is not None:
            raise ValueError("--validation_fraction needs every key: leave --streaming out, or name a --validation_split")
        return open_stream(dataset_name, split, config_name, limit), Layout({})
    layout = find_layout(dataset_name, config_name, layouts, validation_fraction is not None)
    if layout.splits:
        dataset = open_split(layout.splits, split, validation_fraction, dataset_name)
    else:
        dataset = datasets.load_dataset(dataset_name, config_name, split=split)
    if not len(dataset):
        raise ValueError(f"the split {split!r} of {dataset_name} has no images")
    if limit is not None and limit < len(dataset):
        dataset = dataset.select(sorted(np.random.default_rng(seed).permutation(len(dataset))[:limit].tolist()))
    return leave_encoded(dataset), layout


def open_stream(dataset_name: str, split: str, config_name: str | None, limit: int | None) -> datasets.Dataset:
    """The first `limit` rows, encoded, in a file of the cache: no row is held in memory, and a resumed run finds it there."""
    if limit is None:
        raise ValueError("streaming needs a number of rows: set --limit")
    options = {"dataset_name": dataset_name, "config_name": config_name, "split": split, "limit": limit}
    options["version"] = folder_version(Path(dataset_name)) if Path(dataset_name).is_dir() else ""
    features = leave_encoded(stream_of(dataset_name, config_name, split)).features
    dataset = datasets.Dataset.from_generator(first_rows, features=features, gen_kwargs=options)
    dataset._fingerprint = hashlib.sha256(json.dumps([options, features and str(features)]).encode()).hexdigest()[:16]
    return leave_encoded(dataset)


def stream_of(dataset_name: str, config_name: str | None, split: str) -> datasets.IterableDataset:
    return datasets.load_dataset(dataset_name, config_name, split=split, streaming=True)


def first_rows(
    dataset_name: str,
    config_name: str | None,
    split: str,
    limit: int,
    version: str,  # noqa: ARG001
) -> Iterator[dict[str, Any]]:
    """Rows for `Dataset.from_generator`, which keeps them by its arguments: `version` makes changed files another set."""
    yield from itertools.islice(leave_encoded(stream_of(dataset_name, config_name, split)), limit)


def folder_version(folder: Path) -> str:
    """Another text when a file below `folder` is added, removed or written again."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stamps = [(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]


def find_layout(dataset_name: str, config_name: str | None, layouts: Mapping[str, Recogniser], list_splits: bool) -> Layout:
    """The layout of a folder; for the Hub, one of all splits, or of none where they need not be known."""
    if Path(dataset_name).is_dir():
        return recognise(Path(dataset_name), layouts)
    if dataset_name.startswith(("/", "./", "../", "~")):
        raise ValueError(f"There is no folder {dataset_name}.")
    names = datasets.get_dataset_split_names(dataset_name, config_name) if list_splits else ()
    return Layout({name: partial(datasets.load_dataset, dataset_name, config_name, split=name) for name in names})


def split_names(dataset_name: str, config_name: str | None = None) -> list[str]:
    """The splits of a data set, as `load_source` takes them."""
    if dataset_name == "toyscapes":
        return ["train", "validation", "test"]
    if not Path(dataset_name).is_dir() and dataset_name in PRESETS:
        dataset_name = PRESETS[dataset_name].dataset_name
    return list(find_layout(dataset_name, config_name, MASK_LAYOUTS, True).splits)


def leave_encoded(dataset):
    """Images as `{"bytes", "path"}`: decoding is ours, so that a broken file is reported by its key."""
    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return dataset


def load_source(
    dataset_name: str,
    split: str,
    config_name: str | None = None,
    image_column: str | None = None,
    mask_column: str | None = None,
    classes_file: str | None = None,
    reduce_labels: bool = False,
    id_map: Mapping | str | Path | None = None,
    ignore_label: int | None = None,
    streaming: bool = False,
    limit: int | None = None,
    seed: int = 0,
    size: tuple[int, int] = (128, 128),
    validation_fraction: float | None = None,
    colour_map: Mapping[Colour, int] | Sequence[Colour] | str | Path | None = None,
) -> SegmentationSource | ToyscapesSource:
    """Images and masks of Toyscapes, a preset, a Hub data set or a folder.

    Args:
        dataset_name: "toyscapes", a name in `presets.PRESETS`, a Hub id, or a folder.
        classes_file: class names, or a file of them (see `class_names_of_argument`); by default those of the preset, the
            folder, the features or the colour map.
        reduce_labels, ignore_label: see `MaskReader`.
        id_map: what `read_id_map` reads.
        limit, streaming, seed: see `open_dataset`; for Toyscapes the seed chooses the scenes.
        size: (height, width) of Toyscapes scenes.
        validation_fraction: the splits are then "train" and "validation", see `open_split`.
        colour_map: for masks stored as colours: a file (see `read_colour_map`) or what `MaskReader` takes; by default the
            preset's, or the file of that name in the folder.
    """
    if dataset_name == "toyscapes":
        if validation_fraction is not None:
            raise ValueError("toyscapes has a split 'validation'; leave --validation_fraction out")
        return ToyscapesSource(ToyscapesDataset(split, size, limit, seed))
    folder = Path(dataset_name) if Path(dataset_name).is_dir() else None
    preset = None if folder else PRESETS.get(dataset_name)
    if preset:
        dataset_name, reduce_labels = preset.dataset_name, reduce_labels or preset.reduce_labels
        image_column, mask_column = image_column or preset.image_column, mask_column or preset.mask_column
        id_map, colour_map = id_map or preset.id_map, colour_map or preset.colour_map
    dataset, layout = open_dataset(dataset_name, split, config_name, streaming, limit, seed, validation_fraction)
    image_column = find_column(image_columns(dataset), "image", image_column)
    mask_column = find_column(image_columns(dataset), "mask", mask_column)
    reduce_labels = reduce_labels or (layout.reduce_labels and id_map is None)
    ids = read_id_map(id_map) if id_map else None if reduce_labels else layout.id_map
    class_names = choose_class_names(dataset_name, dataset, classes_file, preset or layout, reduce_labels)
    colours, class_names = choose_colours(colour_map or (folder and colour_map_in_folder(folder)), class_names)
    read_mask = MaskReader(len(class_names) if class_names else None, colours, reduce_labels, ids, ignore_label)
    description = {
        "dataset": folder.resolve().name if folder else dataset_name, "fingerprint": dataset._fingerprint,
        "columns": [image_column, mask_column], "reduce_labels": reduce_labels, "ignore_label": ignore_label,
        "id_map": sorted((str(stored), str(class_id)) for stored, class_id in (ids or {}).items()),
        "colours": sorted(colours.items()) if isinstance(colours, Mapping) else colours,
    }  # fmt: skip
    description = json.loads(json.dumps(description))  # lists, as a file that it is compared with has them
    source = SegmentationSource(
        dataset, image_column, mask_column, read_mask, class_names, description, folder, layout.decode_mask
    )
    if colours is None and layout.decode_mask is None:
        find_voc_colours(source)
    return source


def find_voc_colours(source: SegmentationSource, count: int = 16) -> None:
    """Reads masks by Pascal VOC's palette where a sample of them is stored in its colours."""
    rows = sorted({round(row) for row in np.linspace(0, len(source) - 1, count)})
    try:
        found = holds_voc_colours(source.stored(row)[2] for row in rows)
    except ValueError:  # a broken mask is reported when it is its turn
        return
    if found:
        logger.info("masks hold the colours of Pascal VOC's palette, and are read by it")
        source.read_mask.use_colours(voc_palette(IGNORE_INDEX))
        source.description["colours"] = "Pascal VOC"


def image_columns(dataset: datasets.Dataset) -> list[str]:
    """Columns that can hold an image, the path of one or an array: numbers and class labels cannot."""

    def fits(feature) -> bool:
        array = isinstance(feature, datasets.Array2D) or isinstance(getattr(feature, "feature", None), datasets.List)
        return array or isinstance(feature, (datasets.Image, dict)) or getattr(feature, "dtype", None) in PATH_TYPES

    return [name for name, feature in dataset.features.items() if fits(feature)]


def choose_class_names(
    dataset_name: str, dataset: datasets.Dataset, classes: str | None, known: Preset | Layout, reduce_labels: bool
) -> list[list[str]] | None:
    """Class names from the most specific place that has some; the name of a 0 that means unlabelled is left out."""
    if classes:
        names = class_names_of_argument(classes)
    elif isinstance(known, Preset):
        names = [[name] for name in known.class_names or ()] or read_class_file(
            hf_hub_download(dataset_name, "id2label.json", repo_type="dataset")
        )
    else:
        names = class_names_in_folder(dataset_name) or known.class_names or class_names_in_features(dataset.features)
    if names and reduce_labels and names[0][0].lower() in UNLABELLED_NAMES:
        return names[1:]
    return names


def choose_colours(colour_map: Any, class_names: list[list[str]] | None) -> tuple[Any, list[list[str]] | None]:
    """What `MaskReader` takes as a colour map, and the class names, which a file may also give."""
    if not isinstance(colour_map, (str, Path)):
        return colour_map, class_names
    colours = read_colour_map(colour_map)
    class_names = class_names or class_names_of_colours(colours)
    return ids_of_colours(colours, class_names), class_names


def load_captions(
    dataset_name: str,
    split: str,
    config_name: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    streaming: bool = False,
    limit: int | None = None,
    seed: int = 0,
    validation_fraction: float | None = None,
    **toyscapes_options: Any,
) -> CaptionSource | ToyscapesCaptions:
    """Image-caption pairs of Toyscapes, a Hub data set or a folder (see `caption_files`).

    Args:
        limit, streaming, seed, validation_fraction: see `open_dataset`.
        toyscapes_options: `size`, `omission_rate` and `closeup_rate` of `ToyscapesDataset`; unused for others.
    """
    if dataset_name == "toyscapes":
        return ToyscapesCaptions(ToyscapesDataset(split, num_samples=limit, seed=seed, **toyscapes_options))
    dataset, _ = open_dataset(dataset_name, split, config_name, streaming, limit, seed, validation_fraction, CAPTION_LAYOUTS)
    name = Path(dataset_name).resolve().name if Path(dataset_name).is_dir() else dataset_name
    return CaptionSource(dataset, image_column, caption_column, {"dataset": name, "fingerprint": dataset._fingerprint})
