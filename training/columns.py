"""Finding columns and class names in data sets whose authors named them differently."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets

COLUMN_NAMES = {
    "image": ("image", "pixel_values", "jpg", "jpeg", "png"),
    "mask": ("mask", "label", "labels", "annotation", "semantic_segmentation", "segmentation"),
    "caption": ("caption", "text", "txt", "captions"),
    "labels": ("image_labels", "tags"),
    "key": ("key", "__key__", "file_name", "filename", "id"),
}
CLASS_FILES = ("classes.txt", "classes.json", "id2label.json")


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


def read_class_names(path: str | Path) -> list[str]:
    """Class names in order of id: a text file with one name per line, a JSON list, or a JSON `id2label` object.

    Raises:
        ValueError: the file holds none of these, or the ids of an `id2label` have gaps.
    """
    path = Path(path)
    if path.suffix != ".json":
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, dict) and all(str(key).isdigit() for key in content):
        by_id = {int(key): name for key, name in content.items()}
        if sorted(by_id) != list(range(len(by_id))):
            raise ValueError(f"{path}: ids must be 0 to {len(by_id) - 1} without gaps, got {sorted(by_id)}")
        content = [by_id[index] for index in range(len(by_id))]
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path}: expected a list of class names or an object of id -> name, got {type(content).__name__}")
    return content


def class_names_in_folder(folder: str | Path) -> list[str] | None:
    """Class names from the first of `CLASS_FILES` that `folder` holds."""
    path = next((Path(folder) / name for name in CLASS_FILES if (Path(folder) / name).is_file()), None)
    return read_class_names(path) if path else None


def class_names_in_features(features: datasets.Features | None) -> list[str] | None:
    """Names of the only list of `ClassLabel`s among the columns: the image labels, which share their ids with the masks."""
    inner: Iterable = (getattr(feature, "feature", None) for feature in (features or {}).values())
    found = [feature.names for feature in inner if isinstance(feature, datasets.ClassLabel)]
    return list(found[0]) if len(found) == 1 else None
