"""Toyscapes on disk: a Hub-style Parquet folder, an imagefolder, and the contact sheet.

Both folders load with `datasets.load_dataset(folder)`. Files are written to a temporary name and renamed, so that an
interrupted export leaves no half file under a final name.
"""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import datasets
from PIL import Image

from ..atomic import replace_file
from ..drawing.palette import palette
from .render_scene import render
from .scene_datasets import ToyscapesDataset, load_toyscapes, png_bytes
from .scene_vocabulary import CLASS_NAMES

ROWS_PER_SHARD = 5_000


def export_parquet(folder: str | Path, scenes: Iterable[ToyscapesDataset], num_proc: int | None = None) -> list[Path]:
    """Write data/SPLIT-00000-of-0000N.parquet for every data set, as the Hub lays them out, features embedded.

    Args:
        folder: where to; its earlier Parquet files of the same splits are replaced.
        scenes: one `ToyscapesDataset` per split.
        num_proc: processes that draw.

    Returns:
        The files written.
    """
    written = []
    for part in scenes:
        with tempfile.TemporaryDirectory() as cache:  # the rows would otherwise stay in the user's cache a second time
            rows = load_toyscapes(**part.settings(), num_proc=num_proc, cache_dir=cache)
            written += _write_shards(Path(folder) / "data", part.split, rows)
    return written


def _write_shards(folder: Path, split: str, rows: datasets.Dataset) -> list[Path]:
    count = -(-len(rows) // ROWS_PER_SHARD)
    paths = [folder / f"{split}-{k:05d}-of-{count:05d}.parquet" for k in range(count)]
    for k, path in enumerate(paths):
        with replace_file(path) as partial:
            rows.shard(count, k, contiguous=True).to_parquet(partial)
    for stale in set(folder.glob(f"{split}-*-of-*.parquet")) - set(paths):
        stale.unlink()
    return paths


def export_imagefolder(folder: str | Path, scenes: Iterable[ToyscapesDataset]) -> Path:
    """Write SPLIT/images/*.png, SPLIT/masks/*.png and SPLIT/metadata.jsonl for every data set, and classes.txt.

    A line of metadata.jsonl has file_name, mask_file_name, image_labels (class ids), labels (class names), caption and
    key; masks are single-channel images of class ids; line k of classes.txt names class k.

    Returns:
        `folder` as a path.
    """
    root = Path(folder)
    for part in scenes:
        lines = [_write_pair(root / part.split, part[index]) for index in range(len(part))]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        _write_text(root / part.split / "metadata.jsonl", text)
    _write_text(root / "classes.txt", "".join(f"{name}\n" for name in CLASS_NAMES))
    return root


def _write_text(path: Path, text: str) -> None:
    with replace_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _write_pair(folder: Path, scene) -> dict:
    names = {"file_name": f"images/{scene.key}.png", "mask_file_name": f"masks/{scene.key}.png"}
    for name, plane in zip(names.values(), (scene.image, scene.mask), strict=True):
        with replace_file(folder / name) as partial:
            partial.write_bytes(png_bytes(plane))
    labels = list(scene.image_labels)
    words = {"image_labels": labels, "labels": [CLASS_NAMES[label] for label in labels], "caption": scene.caption}
    return names | words | {"key": scene.key}


def write_contact_sheet(
    path: str | Path, seed: int = 0, first: int = 0, columns: int = 6, rows: int = 3, size: int = 192
) -> Path:
    """Draw `columns` by `rows` scenes of the train split, each above its mask, and save them as one picture."""
    if columns < 1 or rows < 1:
        raise ValueError(f"a contact sheet needs at least one column and one row, got {columns} x {rows}")
    gap = 4
    sheet = Image.new("RGB", (columns * (size + gap) + gap, rows * (2 * size + 2 * gap + 6) + gap), (255, 255, 255))
    colours = palette(len(CLASS_NAMES)).ravel().tolist()
    for k in range(columns * rows):
        scene = render(seed, first + k, size, size)
        x, y = gap + (k % columns) * (size + gap), gap + (k // columns) * (2 * size + 2 * gap + 6)
        mask = Image.fromarray(scene.mask)
        mask.putpalette(colours)
        sheet.paste(Image.fromarray(scene.image), (x, y))
        sheet.paste(mask.convert("RGB"), (x, y + size + gap))
    with replace_file(path) as partial:
        sheet.save(partial, "PNG", optimize=True)
    return Path(path)
