"""Image-caption pairs for curation and CoCu: everything `load_captions` reads, and folders of images with a caption file.

A folder may hold `captions.csv` or `.tsv` (columns image and caption, one row per caption), or captions in COCO's layout as
`captions.json` or `annotations/captions_<split>.json`. Images lie in it, in `images/`, or in a folder of the split's name
in either. Folders of WebDataset shards, Parquet files and imagefolders go to `datasets`.
"""

import argparse
import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import datasets

from .sources import CaptionSource, ToyscapesCaptions, leave_encoded, load_captions

CAPTION_FILES = ("captions.csv", "captions.tsv", "captions.json")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Where image-caption pairs come from; curation and training must name the same."""
    data = parser.add_argument_group("data")
    data.add_argument("--dataset_name", default="toyscapes", help="'toyscapes', a Hub id, or a folder (%(default)s)")
    data.add_argument("--dataset_config", help="configuration of a Hub data set")
    data.add_argument("--train_split", default="train", help="(%(default)s)")
    data.add_argument("--image_column")
    data.add_argument("--caption_column")
    data.add_argument("--max_train_samples", type=int, help="images used; default: all")
    data.add_argument("--streaming", action="store_true", help="read a Hub data set without downloading all of it")
    data.add_argument("--omission_rate", type=float, default=0.5, help="Toyscapes: concepts a caption leaves out (%(default)s)")
    data.add_argument("--closeup_rate", type=float, default=0.0, help="Toyscapes: images that one concept fills (%(default)s)")
    data.add_argument(
        "--image_size", type=int, default=128, help="side of Toyscapes images, and of the training cache (%(default)s)"
    )
    data.add_argument("--data_seed", type=int, default=0, help="Toyscapes: another seed gives other scenes (%(default)s)")


def source_options(args: argparse.Namespace) -> dict:
    """Arguments for `open_captions`."""
    options = {
        "config_name": args.dataset_config, "image_column": args.image_column, "caption_column": args.caption_column,
        "streaming": args.streaming, "limit": args.max_train_samples, "seed": args.data_seed,
    }  # fmt: skip
    if args.dataset_name == "toyscapes":
        options |= {"size": (args.image_size,) * 2, "omission_rate": args.omission_rate, "closeup_rate": args.closeup_rate}
    return options


def open_captions(dataset_name: str, split: str, **options: Any) -> "CaptionSource | ToyscapesCaptions":
    """As `load_captions`, and for a folder with a caption file, as above."""
    folder = Path(dataset_name)
    candidates = [folder / name for name in (*CAPTION_FILES, f"annotations/captions_{split}.json")]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        return load_captions(dataset_name, split, **options)
    captions = read_coco_captions(path) if path.suffix == ".json" else read_caption_rows(path)
    names = sorted(captions)[: options.get("limit")]
    places = [folder / "images" / split, folder / split, folder / "images", folder]
    images = next((place for place in places if names and (place / names[0]).is_file()), folder)
    missing = [name for name in names if not (images / name).is_file()]
    if missing or not names:
        raise ValueError(f"{path} names {len(names)} images; {len(missing)} are not in {images}, among them {missing[:5]}.")
    columns = {"image": [str(images / name) for name in names], "captions": [captions[name] for name in names], "key": names}
    dataset = leave_encoded(datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()))
    return CaptionSource(dataset, None, None, {"dataset": folder.name, "fingerprint": content_digest(columns)})


def content_digest(columns: dict[str, list]) -> str:
    """Digest of names, captions and file sizes: the same wherever the folder lies, another one when its content changes."""
    sizes = [Path(path).stat().st_size for path in columns["image"]]
    content = json.dumps([columns["key"], columns["captions"], sizes])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def read_caption_rows(path: Path) -> dict[str, list[str]]:
    """Image name -> captions, from a CSV or TSV file with a header; quoted captions may hold commas and line breaks."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        if not rows.fieldnames or not {"image", "caption"} <= set(rows.fieldnames):
            raise ValueError(f"{path} must have the columns image and caption, got {rows.fieldnames}.")
        captions: dict[str, list[str]] = {}
        for row in rows:
            captions.setdefault(row["image"], []).append(row["caption"] or "")
    return captions


def read_coco_captions(path: Path) -> dict[str, list[str]]:
    """Image name -> captions, from COCO's `{"images": [...], "annotations": [...]}`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    names = {image["id"]: image["file_name"] for image in content["images"]}
    captions: dict[str, list[str]] = {name: [] for name in names.values()}
    for annotation in content["annotations"]:
        captions[names[annotation["image_id"]]].append(annotation["caption"])
    return captions


def key_of(source, row: int) -> str:
    """The key of a row whose image may be unreadable."""
    column = getattr(source, "key_column", None)
    return str(source.dataset[row][column]) if column else str(row)


class SelectedRows:
    """The rows of a source whose images can be read.

    Args:
        skipped: row numbers that are left out.
    """

    def __init__(self, source, skipped: list[int]):
        self.source, left_out = source, set(skipped)
        self.rows = [row for row in range(len(source)) if row not in left_out]
        self.description = source.description | {"skipped": sorted(left_out)}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[self.rows[index]]
