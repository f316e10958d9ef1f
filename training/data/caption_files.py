"""Folders of images with a file of captions, and the other layouts that captions come in.

The file is `captions.csv`, `.tsv` or `.jsonl` (columns image and caption, one row per caption or a list of them),
`captions.json` in COCO's layout, or one of these per split: `captions_SPLIT.*`, `annotations/captions_SPLIT.json`. Images lie
in the folder, in `images/`, or in a folder of the split's name in either.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from .layouts import Layout, Recogniser, content_digest, stored_dataset
from .paired_files import is_split_name, subfolders

CAPTION_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
IMAGE_COLUMNS = ("image", "file_name", "filename", "file", "path")
CAPTION_COLUMNS = ("caption", "captions", "text", "sentence")


def caption_files(folder: Path) -> Layout | None:
    """A file for all images, or one per split."""
    per_split = {
        path.stem.removeprefix("captions_"): path
        for pattern in ("captions_*", "annotations/captions_*")
        for path in sorted(folder.glob(pattern))
        if path.suffix in CAPTION_SUFFIXES
    }
    if per_split:
        return Layout({split: partial(open_captions_of_split, path, folder, split) for split, path in per_split.items()})
    path = next((folder / f"captions{suffix}" for suffix in CAPTION_SUFFIXES if (folder / f"captions{suffix}").is_file()), None)
    if path is None:
        return None
    root = folder / "images" if (folder / "images").is_dir() else folder
    splits = [place for place in subfolders(root) if is_split_name(place.name)]
    if splits:
        return Layout({place.name: partial(open_divided, path, splits, place) for place in splits})
    return Layout({"train": partial(open_captions_of_split, path, folder, "train")})


CAPTION_LAYOUTS: dict[str, Recogniser] = {
    "images (in the folder, in images/, or in a folder per split) and captions.csv, .tsv or .jsonl with the columns image and "
    "caption, captions.json in COCO's format, or captions_SPLIT.* or annotations/captions_SPLIT.json": caption_files,
    "what `datasets` reads: Parquet, Arrow, WebDataset shards (jpg and txt), save_to_disk, an imagefolder whose metadata holds "
    "captions": stored_dataset,
}


def read_caption_file(path: Path) -> dict[str, list[str]]:
    """Image name -> captions, in the file's order.

    Raises:
        ValueError: the columns are missing, or a row has no caption.
    """
    if path.suffix == ".json":
        return read_coco_captions(path)
    captions: dict[str, list[str]] = {}
    for number, row in enumerate(read_json_lines(path) if path.suffix == ".jsonl" else read_table(path), 1):
        image = next((row[name] for name in IMAGE_COLUMNS if row.get(name)), None)
        text = next((row[name] for name in CAPTION_COLUMNS if row.get(name) is not None), None)  # may be empty: see CoCu
        if image is None or text is None:
            raise ValueError(
                f"{path}, row {number}: an image or a caption is missing; the columns must be image and caption, they are "
                f"{list(row)}"
            )
        captions.setdefault(image, []).extend([text] if isinstance(text, str) else text)
    return captions


def read_table(path: Path) -> Iterator[Mapping[str, Any]]:
    """Rows of a CSV or TSV file with a header; quoted captions may hold commas and line breaks."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", skipinitialspace=True)


def read_json_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is no JSON ({error})") from error


def read_coco_captions(path: Path) -> dict[str, list[str]]:
    """Image name -> captions, from COCO's `{"images": [...], "annotations": [...]}`; images without a caption are left out."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise ValueError(f"{path} is not in COCO's format: it needs images and annotations")
    names = {image["id"]: image["file_name"] for image in content["images"]}
    captions: dict[str, list[str]] = {}
    for annotation in content["annotations"]:
        captions.setdefault(names[annotation["image_id"]], []).append(annotation["caption"])
    return captions


def open_captions_of_split(path: Path, folder: Path, split: str) -> datasets.Dataset:
    captions = read_caption_file(path)
    places = [folder / "images" / split, folder / split, folder / "images", folder]
    first = next(iter(captions), "")
    place = next((place for place in places if first and (place / first).is_file()), folder)
    missing = [name for name in captions if not (place / name).is_file()]
    if missing or not captions:
        raise ValueError(f"{path} names {len(captions)} images; {len(missing)} are not in {place}, among them {missing[:5]}")
    return caption_dataset({name: str(place / name) for name in captions}, captions)


def open_divided(path: Path, places: list[Path], place: Path) -> datasets.Dataset:
    """The images of one split's folder, where one file has the captions of all splits."""
    captions = read_caption_file(path)
    missing = [name for name in captions if not any((other / name).is_file() for other in places)]
    if missing:
        folders = [other.name for other in places]
        raise ValueError(f"{path} names {len(captions)} images; {len(missing)} are in none of {folders}, such as {missing[:5]}")
    return caption_dataset({name: str(place / name) for name in captions if (place / name).is_file()}, captions)


def caption_dataset(images: dict[str, str], captions: dict[str, list[str]]) -> datasets.Dataset:
    """Rows of key, image and captions, whose fingerprint follows the content and not the place."""
    keys, files = list(images), list(images.values())
    texts = [captions[key] for key in keys]
    dataset = datasets.Dataset.from_dict({"image": files, "captions": texts, "key": keys})
    dataset = dataset.cast_column("image", datasets.Image())
    dataset._fingerprint = content_digest(keys, [files], texts)
    return dataset
