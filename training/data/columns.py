"""Finding columns in data sets whose authors named them differently."""

from collections.abc import Sequence
from typing import Any

import datasets

COLUMN_NAMES = {
    "image": ("image", "pixel_values", "img", "jpg", "jpeg", "png"),
    "mask": (
        "mask", "label", "labels", "annotation", "semantic_segmentation", "segmentation", "segmentation_mask", "gt",
    ),
    "caption": ("caption", "text", "txt", "captions"),
    "labels": ("image_labels", "tags"),
    "key": ("key", "__key__", "file_name", "filename", "id"),
}  # fmt: skip
PATH_TYPES = ("string", "large_string", "binary", "large_binary")


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


def find_image_and_mask(features: datasets.Features, image_column: str | None, mask_column: str | None) -> tuple[str, str]:
    """The columns of images and masks among `features`: those chosen, or the only ones with usual names."""
    columns = [name for name, feature in features.items() if can_hold_an_image(feature)]
    return find_column(columns, "image", image_column), find_column(columns, "mask", mask_column)


def can_hold_an_image(feature: Any) -> bool:
    """Whether a column can hold an image, the path of one or an array: numbers and class labels cannot."""
    array = isinstance(feature, datasets.Array2D) or isinstance(getattr(feature, "feature", None), datasets.List)
    return array or isinstance(feature, (datasets.Image, dict)) or getattr(feature, "dtype", None) in PATH_TYPES
