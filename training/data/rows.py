"""The rows of a data set: which folder, Hub id and split, how many of them, at random or as a stream."""

import difflib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from .layouts import Layout, Recogniser, held_out_of_stream, open_split, recognise
from .mask_layouts import MASK_LAYOUTS
from .presets import PRESETS


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
        streaming: read only the first `limit` rows, see `open_stream`; with `validation_fraction` divided by
            their keys.
        limit: use so many rows, drawn by `seed`; the first ones when streaming.
        validation_fraction: divide the training split in "train" and "validation", see `open_split`.
        layouts: what a folder may look like.

    Raises:
        ValueError: a split that does not exist or is empty, a layout that is not understood, or streaming without a limit.
    """
    if streaming:
        return open_streamed_part(dataset_name, split, config_name, limit, validation_fraction), Layout({})
    layout = find_layout(dataset_name, config_name, layouts, validation_fraction is not None)
    if layout.splits:
        dataset = open_split(layout.splits, split, validation_fraction, dataset_name)
    else:
        dataset = of_hub(dataset_name, partial(datasets.load_dataset, name=config_name, split=split))
    if not len(dataset):
        raise ValueError(f"the split {split!r} of {dataset_name} has no images")
    if limit is not None and limit < len(dataset):
        dataset = dataset.select(sorted(np.random.default_rng(seed).permutation(len(dataset))[:limit].tolist()))
    return leave_encoded(dataset), layout


def open_streamed_part(
    dataset_name: str, split: str, config_name: str | None, limit: int | None, validation_fraction: float | None
) -> datasets.Dataset:
    """The first `limit` rows of a split; with `validation_fraction`, of one part of the training split.

    The part of a row is decided by its key alone: how many rows are read for training, and how many for validation, changes
    nothing, and no row is ever in both.
    """
    if validation_fraction is None:
        return open_stream(dataset_name, split, config_name, limit)
    rows = round(limit / validation_fraction) if limit and split == "validation" else limit
    names = of_hub(dataset_name, partial(datasets.get_dataset_split_names, config_name=config_name))
    splits = {name: partial(open_stream, dataset_name, name, config_name, rows) for name in names}
    return open_split(splits, split, validation_fraction, dataset_name, held_out_of_stream)


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
    return of_hub(dataset_name, partial(datasets.load_dataset, name=config_name, split=split, streaming=True))


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
    if dataset_name.startswith(("/", "./", "../", "~")) or dataset_name.count("/") > 1:
        raise ValueError(f"There is no folder {dataset_name}{meant_folder(dataset_name)}.")
    list_names = partial(datasets.get_dataset_split_names, config_name=config_name)
    names = of_hub(dataset_name, list_names) if list_splits else ()
    return Layout({name: partial(datasets.load_dataset, dataset_name, config_name, split=name) for name in names})


def of_hub(dataset_name: str, ask: Callable[[str], Any]) -> Any:
    """What `ask(dataset_name)` gives.

    Raises:
        ValueError: the Hub has no such data set, or cannot be reached.
    """
    try:
        return ask(dataset_name)
    except OSError as error:
        raise ValueError(
            f"--dataset_name {dataset_name} cannot be opened ({error}): it is no folder here{meant_folder(dataset_name)}. Give "
            "toyscapes, a folder on this machine, or the id of a data set that the Hub can deliver now."
        ) from error


def meant_folder(name: str) -> str:
    """A hint at the folder beside the missing one that is spelt most like it."""
    path = Path(name).expanduser()
    beside = [each.name for each in path.parent.iterdir() if each.is_dir()] if path.parent.is_dir() else []
    found = difflib.get_close_matches(path.name, beside, 1)
    return f" (did you mean {path.parent / found[0]}?)" if found else ""


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
