"""Where the names of classes come from: the command, a preset, the folder, the layout, or the columns' own."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import hf_hub_download

from hf_clipseg.clip.class_files import class_names_of_argument, read_class_file, split_synonyms

from .colour_maps import class_names_of_colours, ids_of_colours, read_colour_map
from .layouts import Layout
from .presets import Preset

UNLABELLED_NAMES = ("unlabeled", "unlabelled", "void", "other", "background", "ignore")
CLASS_FILES = (
    "classes.txt", "classes.json", "id2label.json", "class_names.txt", "labels.txt", "class_dict.csv", "_classes.csv",
)  # fmt: skip


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


def class_names_in_folder(folder: str | Path) -> list[list[str]] | None:
    """The names of every class from the first of `CLASS_FILES` that `folder` holds."""
    path = next((Path(folder) / name for name in CLASS_FILES if (Path(folder) / name).is_file()), None)
    return read_class_file(path) if path else None


def class_names_in_features(features: datasets.Features | None) -> list[list[str]] | None:
    """Names of the only list of `ClassLabel`s among the columns: the image labels, which share their ids with the masks."""
    inner: Iterable = (getattr(feature, "feature", None) for feature in (features or {}).values())
    found = [feature.names for feature in inner if isinstance(feature, datasets.ClassLabel)]
    return [split_synonyms(name) for name in found[0]] if len(found) == 1 else None
