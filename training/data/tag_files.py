"""Folders of images with tags: a CSV of labels, or a folder per class.

The CSV has a header with the image (`file`, `image`, `file_name`, ...) and its labels (`labels`, `tags`, ..., parted by `;`,
`|` or `,`), or one column of 0 and 1 per class. A column `split`, or folders `train/`, `val/`, make splits.
"""

import csv
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import datasets

from .layouts import Layout, Recogniser, content_digest, stored_dataset
from .paired_files import IMAGE_FOLDERS, IMAGE_SUFFIXES, MASK_FOLDERS, is_split_name, subfolders

TAG_FILES = ("tags.csv", "labels.csv")
FILE_COLUMNS = ("file", "image", "file_name", "filename", "path")
LABEL_COLUMNS = ("labels", "tags", "label", "tag", "classes", "class")


def labels_table(folder: Path, path: Path | None = None) -> Layout | None:
    """Images below `folder` that a CSV lists; without a `split` column all of them are "train"."""
    path = path or next((folder / name for name in TAG_FILES if (folder / name).is_file()), None)
    if path is None:
        return None
    rows = read_labels_table(path)
    splits = sorted({split for _, _, split in rows}, key=lambda split: (not split.startswith("train"), split))
    names = sorted({label for _, labels, _ in rows for label in labels})
    return Layout({split: partial(open_tagged, folder, path, split) for split in splits}, [[name] for name in names])


def class_folders(folder: Path) -> Layout | None:
    """A folder per class, or a folder per split with these in it."""
    splits = [place for place in subfolders(folder) if is_split_name(place.name)]
    places = {place.name: place for place in splits} or {"train": folder}
    found = {split: classes for split, place in places.items() if (classes := folders_of_classes(place))}
    names = sorted({name for classes in found.values() for name in classes})
    return Layout({split: partial(open_class_folders, classes) for split, classes in found.items()}, [[name] for name in names])


def folders_of_classes(place: Path) -> dict[str, list[Path]]:
    """Class name -> its images; empty where the folder also holds loose images or folders without any."""
    names = {path.name.lower() for path in subfolders(place)}
    if names <= {*IMAGE_FOLDERS, *MASK_FOLDERS}:  # the images of all classes, and masks
        return {}
    classes = {path.name: sorted(file for file in path.iterdir() if is_image(file)) for path in subfolders(place)}
    loose = any(is_image(path) for path in place.iterdir())
    return {} if loose or not all(classes.values()) else classes


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def read_labels_table(path: Path) -> list[tuple[str, list[str], str]]:
    """(file, labels, split) of every row.

    Raises:
        ValueError: no such file, or its columns are not those above.
    """
    if not path.is_file():
        raise ValueError(f"There is no label file {path}.")
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream, skipinitialspace=True)
        columns = list(reader.fieldnames or ())
        file = next((name for name in FILE_COLUMNS if name in columns), None)
        label = next((name for name in LABEL_COLUMNS if name in columns), None)
        rows = list(reader)
    flags = [name for name in columns if name not in (file, "split")]
    binary = bool(rows and flags) and all((row[name] or "").strip() in ("0", "1") for row in rows for name in flags)
    if file is None or not (label or binary):
        raise ValueError(f"{path} needs the columns 'file' and 'labels' (or one of 0 and 1 per class), it has {columns}.")
    read = partial(listed, label or "") if label else partial(flagged, flags)
    return [(row[file], read(row), (row.get("split") or "train").strip()) for row in rows]


def flagged(flags: list[str], row: Mapping[str, str]) -> list[str]:
    return [name.strip() for name in flags if row[name].strip() == "1"]


def listed(column: str, row: Mapping[str, str]) -> list[str]:
    text = row[column] or ""
    separator = next((separator for separator in ";|," if separator in text), ";")
    return [label.strip() for label in text.split(separator) if label.strip()]


def open_tagged(folder: Path, path: Path, split: str) -> datasets.Dataset:
    rows = [(file, labels) for file, labels, of_split in read_labels_table(path) if of_split == split]
    missing = [file for file, _ in rows if not (folder / file).is_file()]
    if missing:
        raise ValueError(f"{path} lists {len(missing)} files that are not in {folder} (the first: {missing[:5]}).")
    return tag_dataset([file for file, _ in rows], [folder / file for file, _ in rows], [labels for _, labels in rows])


def open_class_folders(classes: Mapping[str, list[Path]]) -> datasets.Dataset:
    rows = [(f"{name}/{file.stem}", file, [name]) for name, files in classes.items() for file in files]
    return tag_dataset(*map(list, zip(*rows, strict=True)))


def tag_dataset(keys: list[str], files: list[Path], labels: list[list[str]]) -> datasets.Dataset:
    """Rows of key, image and tags, whose fingerprint follows the content and not the place."""
    paths = list(map(str, files))
    dataset = datasets.Dataset.from_dict({"image": paths, "tags": labels, "key": keys}).cast_column("image", datasets.Image())
    dataset._fingerprint = content_digest(keys, [paths], labels)
    return dataset


TAG_LAYOUTS: dict[str, Recogniser] = {
    "images and tags.csv or labels.csv with the columns file and labels (parted by ;), or one column of 0 and 1 per class":
        labels_table,
    "a folder of images per class, or these in a folder per split": class_folders,
    "what `datasets` reads: Parquet, Arrow, WebDataset shards, save_to_disk, an imagefolder whose metadata holds tags":
        stored_dataset,
}  # fmt: skip
