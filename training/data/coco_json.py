"""COCO's JSON as masks: instances are drawn, panoptic pictures are mapped to the categories.

Layouts: Lin et al. 2014 (arXiv 1405.0312) and Kirillov et al. 2018 (arXiv 1801.00868), as https://cocodataset.org/#format-data
describes them. Instances: 0 is background, then the categories by id; smaller objects lie over larger ones, crowds are ignored.
Panoptic: the categories by id from 0 on, what no segment covers is ignored.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image, ImageDraw

from hf_clipseg.constants import IGNORE_INDEX

from .layouts import Layout, content_digest


def coco_instances(folder: Path) -> Layout | None:
    """`annotations/instances_SPLIT.json`, or `SPLIT/_annotations.coco.json` beside the images."""
    files = {path.stem.removeprefix("instances_"): path for path in sorted(folder.glob("annotations/instances_*.json"))}
    files |= {path.parent.name: path for path in sorted(folder.glob("*/_annotations.coco.json"))}
    if not files:
        return None
    categories = read_categories(list(files.values()))
    splits = {split: partial(open_instances, path, folder, split, categories) for split, path in files.items()}
    names = [["background"], *([name] for name in categories.values())]
    return Layout(splits, class_names=names, decode_mask=draw_instances)


def coco_panoptic(folder: Path) -> Layout | None:
    """`annotations/panoptic_SPLIT.json` and the pictures in `annotations/panoptic_SPLIT/`."""
    files = {path.stem.removeprefix("panoptic_"): path for path in sorted(folder.glob("annotations/panoptic_*.json"))}
    files = {split: path for split, path in files.items() if path.with_suffix("").is_dir()}
    if not files:
        return None
    categories = read_categories(list(files.values()))
    splits = {split: partial(open_panoptic, path, folder, split, categories) for split, path in files.items()}
    return Layout(splits, class_names=[[name] for name in categories.values()], decode_mask=map_segments)


@lru_cache(maxsize=2)
def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error})") from error
    missing = [name for name in ("images", "annotations", "categories") if name not in content]
    if missing:
        raise ValueError(f"{path} is not in COCO's format: it has no {missing}")
    return content


def read_categories(paths: Sequence[Path]) -> dict[int, str]:
    """Category id -> name, by id; the same in all files, or ids would mean different classes in different splits."""
    found = [{category["id"]: category["name"] for category in read_json(path)["categories"]} for path in paths]
    for path, categories in zip(paths, found, strict=True):
        if categories != found[0]:
            raise ValueError(f"{path} has other categories than {paths[0]}; use one list of categories for all splits")
    return dict(sorted(found[0].items()))


def find_images(folder: Path, split: str, names: Sequence[str], path: Path) -> list[str]:
    """The files of the images that `path` names."""
    places = [folder / "images" / split, folder / split, folder / "images", folder]
    place = next((place for place in places if names and (place / names[0]).is_file()), folder / split)
    missing = [name for name in names if not (place / name).is_file()]
    if missing or not names:
        raise ValueError(f"{path} names {len(names)} images; {len(missing)} are not in {place}, among them {missing[:5]}")
    return [str(place / name) for name in names]


def open_instances(path: Path, folder: Path, split: str, categories: Mapping[int, str]) -> datasets.Dataset:
    content = read_json(path)
    class_ids = {category: index for index, category in enumerate(categories, 1)}
    parts: dict[int, list] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        class_id = IGNORE_INDEX if annotation.get("iscrowd") else class_ids[annotation["category_id"]]
        parts[annotation["image_id"]].append((annotation.get("area", 0), class_id, annotation["segmentation"]))
    masks = []
    for image in content["images"]:
        drawn = [part[1:] for part in sorted(parts[image["id"]], key=lambda part: -part[0])]
        masks.append(json.dumps({"height": image["height"], "width": image["width"], "parts": drawn}))
    return coco_dataset(content, find_images(folder, split, [image["file_name"] for image in content["images"]], path), masks)


def open_panoptic(path: Path, folder: Path, split: str, categories: Mapping[int, str]) -> datasets.Dataset:
    content = read_json(path)
    class_ids = {category: index for index, category in enumerate(categories)}
    by_image = {annotation["image_id"]: annotation for annotation in content["annotations"]}
    masks = []
    for image in content["images"]:
        annotation = by_image[image["id"]]
        segments = [(segment["id"], class_ids[segment["category_id"]]) for segment in annotation["segments_info"]]
        masks.append(json.dumps({"file": str(path.with_suffix("") / annotation["file_name"]), "segments": segments}))
    return coco_dataset(content, find_images(folder, split, [image["file_name"] for image in content["images"]], path), masks)


def coco_dataset(content: Mapping, images: list[str], masks: list[str]) -> datasets.Dataset:
    keys = [image["file_name"].rsplit(".", 1)[0] for image in content["images"]]
    dataset = datasets.Dataset.from_dict({"image": images, "mask": masks, "key": keys})
    dataset = dataset.cast_column("image", datasets.Image())
    # the pictures' folder is no part of the content
    dataset._fingerprint = content_digest(keys, [images], [mask[mask.find("segments") :] for mask in masks])
    return dataset


def draw_instances(value: str) -> np.ndarray:
    """`(height, width)` uint8 class ids of the polygons and run lengths in one row's JSON."""
    record = json.loads(value)
    height, width = record["height"], record["width"]
    canvas = Image.new("L", (width, height), 0)
    for class_id, segmentation in record["parts"]:
        if isinstance(segmentation, dict):
            inside = Image.fromarray(decode_runs(segmentation).astype(np.uint8) * 255)
            canvas.paste(class_id, (0, 0), inside)
            continue
        for polygon in segmentation:
            if len(polygon) >= 6:
                ImageDraw.Draw(canvas).polygon(polygon, fill=class_id)
    return np.asarray(canvas)


def decode_runs(segmentation: Mapping[str, Any]) -> np.ndarray:
    """`(height, width)` bool from run lengths, as numbers or in COCO's packed letters; column by column, outside first."""
    height, width = segmentation["size"]
    counts = segmentation["counts"]
    counts = unpack_counts(counts) if isinstance(counts, str) else counts
    if sum(counts) != height * width:
        raise ValueError(f"run lengths cover {sum(counts)} pixels of an image of {height} x {width}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def unpack_counts(letters: str) -> list[int]:
    """Five bits to a letter from the lowest on, the sixth says that more follow; from the third on, the difference to the one
    before the last."""
    counts: list[int] = []
    value, shift = 0, 0
    for letter in letters:
        bits = ord(letter) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    return counts


def map_segments(value: str) -> np.ndarray:
    """`(height, width)` class ids of a panoptic picture, whose colours count segments: red + 256 green + 65536 blue."""
    record = json.loads(value)
    pixels = np.asarray(Image.open(record["file"]).convert("RGB")).astype(np.int64)
    segment_ids, positions = np.unique(pixels @ (1, 256, 65_536), return_inverse=True)
    class_ids = dict(record["segments"])
    found = [class_ids.get(segment_id, IGNORE_INDEX) for segment_id in segment_ids.tolist()]
    return np.array(found, dtype=np.uint8)[positions].reshape(pixels.shape[:2])
