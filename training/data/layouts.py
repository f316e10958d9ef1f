"""Local folders as people have them: which layout a folder has, which splits it holds, and how one is divided.

A layout is a row of a table (in `mask_layouts`, `caption_files` or `tag_files`): what it looks like, and a function that finds
it in a folder. To add one, write such a function (`folder -> Layout`, or None where the folder looks otherwise) and its row.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from .columns import find_key_column

logger = logging.getLogger(__name__)

METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
STORED_FILES = tuple(
    f"{depth}{name}" for depth in ("", "*/", "*/*/") for name in (*METADATA_FILES, "*.parquet", "*.arrow", "*.tar")
)
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
DIVISION_SEED = 0  # part of what --validation_fraction means: changing it would mix training and validation images


@dataclass
class Layout:
    """What a folder holds, and what its layout says about the masks.

    Args:
        splits: name of each split -> opens its rows.
        class_names, id_map, reduce_labels: hold where the user says nothing else.
        decode_mask: from the mask column to what `MaskReader` reads; None: it is an image.
    """

    splits: Mapping[str, Callable[[], datasets.Dataset]]
    class_names: list[list[str]] | None = None
    id_map: Mapping[Any, Any] | None = None
    reduce_labels: bool = False
    decode_mask: Callable[[Any], Any] | None = None
    name: str = field(default="", compare=False)


Recogniser = Callable[[Path], Layout | None]


class UnknownLayoutError(ValueError):
    """A folder looks like nothing that is understood; other errors are about one that looks like something, and is amiss."""


def recognise(folder: Path, layouts: Mapping[str, Recogniser]) -> Layout:
    """The first of `layouts` that `folder` has.

    Raises:
        UnknownLayoutError: none, and the message lists them all.
        ValueError: what a layout finds amiss; or there are no files at all.
    """
    for name, find in layouts.items():
        if (layout := find(folder)) and layout.splits:
            layout.name = name
            logger.info("%s is read as: %s; splits: %s", folder, name.split(", ")[0], ", ".join(layout.splits))
            return layout
    if next((path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")), None) is None:
        raise ValueError(f"{folder} is empty: there is no file in it, nor in a folder below it")
    known = "\n".join(f"  - {name}" for name in layouts)
    raise UnknownLayoutError(f"{folder} is laid out in no way that is understood. These are:\n{known}")


def open_split(
    splits: Mapping[str, Callable[[], datasets.Dataset]],
    split: str,
    validation_fraction: float | None,
    where: str,
    part: Callable | None = None,
) -> datasets.Dataset:
    """The rows of one split; with `validation_fraction`, the training split is divided in "train" and "validation".

    Args:
        part: what divides; default: `held_out`.

    Raises:
        ValueError: the split does not exist (the message lists those that do), or the set cannot be divided.
    """
    available = splits if validation_fraction is None else divided(splits, validation_fraction, where, part or held_out)
    if split not in available:
        hint = ""
        if validation_fraction is None and find_validation(splits) is None:
            hint = "; --validation_fraction 0.1 holds a part of it out as 'validation'"
        raise ValueError(f"{where} has no split {split!r}; it has {list(available)}{hint}")
    return available[split]()


def find_validation(splits: Iterable[str]) -> str | None:
    """The split that is called validation, val, valid, val2017, dev, ..."""
    return next((name for name in splits if name.lower().startswith(("val", "dev"))), None)


def divided(
    splits: Mapping[str, Callable[[], datasets.Dataset]], fraction: float, where: str, part: Callable
) -> dict[str, Callable[[], datasets.Dataset]]:
    """The splits, with a part of the training split as "validation"."""
    if not 0 < fraction < 1:
        raise ValueError(f"--validation_fraction is {fraction}; it is a share of the images, between 0 and 1")
    if existing := find_validation(splits):
        raise ValueError(f"{where} has a split {existing!r}; pass --validation_split {existing}, not --validation_fraction")
    whole = next(iter(splits)) if len(splits) == 1 else next((name for name in splits if name.startswith("train")), None)
    if whole is None:
        raise ValueError(f"{where} has the splits {list(splits)}, none of them for training: there is nothing to divide")
    parts = {name: partial(part, splits[whole], fraction, name == "validation", where) for name in (whole, "validation")}
    return {**splits, **parts}


def held_out(open_whole: Callable[[], datasets.Dataset], fraction: float, validation: bool, where: str) -> datasets.Dataset:
    """One part of a set. Which image belongs to which is decided by its key alone: no seed, limit or order changes it."""
    dataset = open_whole()
    column = find_key_column(dataset.column_names)
    keys = [division_key(str(key)) for key in dataset[column]] if column else [str(index) for index in range(len(dataset))]
    unique = sorted(set(keys), key=lambda key: (key_digest(key), key))
    count = round(len(unique) * fraction)
    if not 0 < count < len(unique):
        raise ValueError(
            f"--validation_fraction {fraction} of the {len(unique)} images in {where} leaves a part without images"
        )
    chosen = set(unique[:count])
    return dataset.select([index for index, key in enumerate(keys) if (key in chosen) == validation])


def held_out_of_stream(
    open_whole: Callable[[], datasets.Dataset], fraction: float, validation: bool, where: str
) -> datasets.Dataset:
    """As `held_out`, where the other rows are not known: a key is held out where its digest lies in the first `fraction` of all
    digests, so that the parts have these shares on average only."""
    dataset = open_whole()
    column = find_key_column(dataset.column_names)
    keys = map(str, dataset[column] if column else range(len(dataset)))
    held = [int.from_bytes(key_digest(division_key(key))[:8], "big") < fraction * 2**64 for key in keys]
    rows = [index for index, out in enumerate(held) if out == validation]
    if not rows:
        raise ValueError(
            f"--validation_fraction {fraction} of {len(held)} streamed images of {where} leaves a part without images: raise "
            "--limit"
        )
    return dataset.select(rows)


def key_digest(key: str) -> bytes:
    return hashlib.sha256(f"{DIVISION_SEED}/{key}".encode()).digest()


def division_key(key: str) -> str:
    """The name of an image without folder and suffix, so that masks, captions and tags of one set are divided alike."""
    name = key.replace("\\", "/").rpartition("/")[2]
    stem, _, suffix = name.rpartition(".")
    return stem if stem and f".{suffix.lower()}" in IMAGE_SUFFIXES else name


def stored_dataset(folder: Path) -> Layout | None:
    """What `datasets` wrote or reads: `save_to_disk`, Parquet, Arrow, WebDataset shards, an imagefolder with metadata."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        loaded = datasets.load_from_disk(str(folder))
    elif any(any(folder.glob(pattern)) for pattern in STORED_FILES):
        loaded = datasets.load_dataset(str(folder))
    else:
        return None
    if isinstance(loaded, datasets.Dataset):
        loaded = {str(loaded.split or "train"): loaded}
    return Layout({name: partial(loaded.__getitem__, name) for name in loaded})


def has_metadata(folder: Path) -> bool:
    """Whether an imagefolder's table, which also holds captions, describes the images below `folder`."""
    return any((folder / name).is_file() for name in METADATA_FILES)


def content_digest(keys: list[str], files: list[list[str]], texts: list | None = None) -> str:
    """Digest of names, files and texts: the same wherever the folder lies, another one when its content changes.

    Of a file, its size and its last bytes count, which in a PNG hold the checksum of all pixels: a set is opened in seconds.
    """
    digest = hashlib.sha256()
    for index, key in enumerate(keys):
        for column in files:
            digest.update(file_ending(column[index]))
        digest.update(json.dumps([key, texts[index] if texts else None]).encode())
    return digest.hexdigest()[:16]


def file_ending(path: str, count: int = 32) -> bytes:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - count))
        return str(size).encode() + file.read()
