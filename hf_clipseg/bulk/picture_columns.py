"""The pictures of a `datasets` column, undecoded, so that they are decoded beside the model."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import Image, load_dataset, load_from_disk

from ..processing.image_io import ImageSource


class PictureColumn:
    """Keys and pictures of one column.

    Args:
        name: a Hub id, a folder that `datasets` reads, or one that `save_to_disk` wrote.
        split: of the data set.
        image_column: with pictures, or with their paths or bytes.
        key_column: whose values name the pictures, each once; the number of the row where left out.

    Raises:
        ValueError: there is no such data set, split or column, or two rows have one key.
    """

    def __init__(self, name: str, split: str = "train", image_column: str = "image", key_column: str | None = None):
        try:
            if (Path(name) / "state.json").is_file():
                rows = load_from_disk(name)
            elif (Path(name) / "dataset_dict.json").is_file():
                rows = load_from_disk(name)[split]
            else:
                rows = load_dataset(name, split=split)
        except (KeyError, FileNotFoundError, ConnectionError) as error:
            raise ValueError(f"{name} has no split {split!r} that can be read ({error}). Name a Hub id or a folder.") from error
        for column in (image_column, *([key_column] if key_column else ())):
            if column not in rows.column_names:
                raise ValueError(f"{name} has no column {column!r}; its columns are {', '.join(rows.column_names)}.")
        if isinstance(rows.features[image_column], Image):
            rows = rows.cast_column(image_column, Image(decode=False))
        self.rows, self.image_column = rows, image_column
        self.keys = [str(key) for key in rows[key_column]] if key_column else [str(index) for index in range(len(rows))]
        if len(set(self.keys)) < len(self.keys):
            raise ValueError(f"The column {key_column!r} of {name} names two pictures alike; choose another --key_column.")

    def read(self, places: Iterable[int]) -> Iterator[tuple[str, ImageSource]]:
        for place in places:
            yield self.keys[place], undecoded(self.rows[place][self.image_column])


def undecoded(value: Any) -> ImageSource:
    """What `load_image` reads, of a column's value: `datasets` keeps pictures as bytes or a path."""
    if isinstance(value, dict):
        return value["bytes"] if value.get("bytes") is not None else value["path"]
    return value
