"""Finding columns and class names in data sets whose authors named them differently."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets

from hf_clipseg.clip.class_files import read_class_file, split_synonyms

COLUMN_NAMES = {
    "image": ("image", "pixel_values", "img", "jpg", "jpeg", "png"),
    "mask": (
        "mask", "label", "labels", "annotation", "semantic_segmentation", "segmentation", "segmentation_mask", "gt",
    ),
    "caption": ("caption", "text", "txt", "captions"),
    "labels": ("image_labels", "tags"),
    "key": ("key", "__key__", "file_name", "filename", "id"),
}  # fmt: skip
CLASS_FILES = (
    "classes.txt", "classes.json", "id2label.json", "class_names.txt", "labels.txt", "class_dict.csv", "_classes.csv",
)  # fmt: skip


def find_column(columns: Sequence[str], kind: str, chosen: str | None = None) -> str:
    """The column that holds the `kind` (a key of `COLUMN_NAMES`): `chosen`, or the only one with a usual name.

    Raises:
        ValueError: no column or several match; the message lists the columns that exist.
    """
    if chosen is not None:
        if chosen not in columns:
            raise ValueError(f"--{kind}_column {chosen!r} does not exist; the columns are {list(columns)}")
        return chosen
    found = [name for name in COLUMN_NAMES[kind] if name in columns]
    if len(found) == 1:
        return found[0]
    problem = "several columns could be" if found else "no column looks like"
    raise ValueError(f"{problem} the {kind}{f': {found}' if found else ''}; choose with --{kind}_column one of {list(columns)}")


def optional_column(columns: Sequence[str], kind: str, chosen: str | None = None) -> str | None:
    """`find_column`, or None where nothing was chosen and no single column matches."""
    found = [name for name in COLUMN_NAMES[kind] if name in columns]
    return find_column(columns, kind, chosen) if chosen is not None or len(found) == 1 else None


def find_key_column(columns: Sequence[str]) -> str | None:
    """The first column that usually names a row; None where there is none."""
    return next((name for name in COLUMN_NAMES["key"] if name in columns), None)


def class_names_in_folder(folder: str | Path) -> list[list[str]] | None:
    """The names of every class from the first of `CLASS_FILES` that `folder` holds."""
    path = next((Path(folder) / name for name in CLASS_FILES if (Path(folder) / name).is_file()), None)
    return read_class_file(path) if path else None


def class_names_in_features(features: datasets.Features | None) -> list[list[str]] | None:
    """Names of the only list of `ClassLabel`s among the columns: the image labels, which share their ids with the masks."""
    inner: Iterable = (getattr(feature, "feature", None) for feature in (features or {}).values())
    found = [feature.names for feature in inner if isinstance(feature, datasets.ClassLabel)]
    return [split_synonyms(name) for name in found[0]] if len(found) == 1 else None
