"""One picture's result as a row of a table: key, index PNG, and what is in it."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..constants import IGNORE_INDEX
from ..drawing.label_files import index_picture


def label_row(key: str, label_map: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """The columns of a result, values plain: `label_map` is the bytes of a PNG whose pixel values are class ids.

    Args:
        key: of the picture.
        label_map: `(H, W)` class ids; 255 is no class where there are at most 255.
        class_names: the name of every class.

    Returns:
        `key`, `label_map`, `height`, `width`, and of the classes that occur, the largest first: `ids`, `names` and
        `areas`, their shares of the labelled pixels.
    """
    png = io.BytesIO()
    index_picture(label_map, class_names).save(png, format="PNG")
    counts = np.bincount(label_map.ravel(), minlength=len(class_names))
    if len(class_names) <= IGNORE_INDEX:
        counts = counts[: len(class_names)]
    ids = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    return {
        "key": key,
        "label_map": png.getvalue(),
        "height": int(label_map.shape[0]),
        "width": int(label_map.shape[1]),
        "ids": ids,
        "names": [class_names[i] for i in ids],
        "areas": [counts[i] / max(1, counts.sum()) for i in ids],
    }
